"""State taken at any step, restored in a new process, continues bit for bit."""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

import tests.envs.tiny  # noqa: F401
from envs import ReplayMismatchError, VectorEnvironment, VectorStep
from envs.atari import AtariVector
from envs.gymnasium_vector import GymnasiumVector
from tests.envs.play import actions_for, assert_same, continue_from, make, play

STICKY = {"repeat_action_probability": 0.25, "full_action_space": True}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """A process that has seen nothing of this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        yield executor


def stored(value: Any) -> Any:
    """What a checkpoint gives back: arrays as they are, everything else through JSON."""
    if isinstance(value, dict):
        return {key: stored(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        assert value.dtype != object
        return value.copy()
    return json.loads(json.dumps(value))


def play_and_save(
    env: VectorEnvironment, actions: np.ndarray
) -> tuple[list[VectorStep], list[dict[str, Any]]]:
    """Every step and the state after it, that of the reset first."""
    steps, states = [env.reset()], [stored(env.state_dict())]
    for row in actions:
        env.send(row)
        steps.append(env.recv())
        states.append(stored(env.state_dict()))
    return steps, states


def critical_steps(steps: list[VectorStep], states: list[dict[str, Any]]) -> dict[str, int]:
    """The steps after which a restore could go wrong; the last of each kind but one."""
    seedings = [int(state["journal"]["seedings"].sum()) for state in states]
    kinds = {
        "in the middle": range(40, len(steps) - 20),
        "at a game's end": [t for t, step in enumerate(steps) if step.terminated.any()],
        "at a game's start": [t for t, step in enumerate(steps) if t and step.started.any()],
        "just reseeded": [t for t in range(1, len(steps)) if seedings[t] > seedings[t - 1]],
        "before reseeding": [t - 1 for t in range(1, len(steps)) if seedings[t] > seedings[t - 1]],
    }
    steps_of = {"at the reset": 0}
    for kind, candidates in kinds.items():
        assert len(candidates) >= 2, kind
        steps_of[kind] = candidates[-2]
    return steps_of


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        pytest.param("atari", "breakout", {"num_threads": 1}, marks=pytest.mark.slow),
        ("atari", "breakout", {"num_threads": 1, **STICKY}),
        pytest.param(
            "atari",
            "breakout",
            {"num_threads": 1, "noop_max": 30, **STICKY},
            marks=pytest.mark.slow,
        ),
        ("gymnasium", "CartPole-v1", {}),
        ("gymnasium", "tests.envs.tiny:TinyColour-v0", {}),
        ("gymnasium", "tests.envs.tiny:TinyCounting-v0", {}),
    ],
    ids=["atari", "sticky", "no-ops", "cartpole", "images", "memory across games"],
)
def test_a_state_continues_bit_for_bit_in_a_new_process(
    kind: str, name: str, options: dict[str, Any], elsewhere: ProcessPoolExecutor
) -> None:
    options = {"seed": 3, **options}
    if kind == "atari":
        options["reseed_every_frames"] = 4 * 2 * 120
    else:
        options["reseed_every_frames"] = 2 * 40
    construction = (kind, name, 2, options)
    env = make(*construction)
    actions = actions_for(env, 400)
    steps, states = play_and_save(env, actions)
    for when, t in critical_steps(steps, states).items():
        there = elsewhere.submit(
            continue_from, construction, states[t], actions[t : t + 150]
        ).result()
        try:
            assert_same(steps[t + 1 : t + 151], there)
        except AssertionError as error:
            raise AssertionError(f"{when}, step {t}: {error}") from None


def test_a_state_at_the_time_limit_continues(elsewhere: ProcessPoolExecutor) -> None:
    options: dict[str, Any] = {"seed": 3, "num_threads": 1, "max_frames_per_game": 100, **STICKY}
    construction = ("atari", "freeway", 2, options)
    env = make(*construction)
    actions = actions_for(env, 90)
    steps, states = play_and_save(env, actions)
    cut = [t for t, step in enumerate(steps) if step.truncated.any()]
    assert cut == [25, 51, 77]
    there = elsewhere.submit(continue_from, construction, states[51], actions[51:]).result()
    assert_same(steps[52:], there)


@pytest.mark.parametrize("kind", ["atari", "cartpole", "memory across games"])
def test_reseeded_environments_are_as_new_ones(kind: str) -> None:
    def made(seed: int) -> VectorEnvironment:
        if kind == "atari":
            return AtariVector("breakout", 2, seed=seed, num_threads=1, noop_max=30)
        game = {"cartpole": "CartPole-v1", "memory across games": "tests.envs.tiny:TinyCounting-v0"}
        return GymnasiumVector(game[kind], 2, seed=seed)

    new, reseeded = made(7), made(3)
    actions = actions_for(new, 90)
    reseeded.reset()
    play(reseeded, actions[::-1])
    reseeded.reseed(7)
    assert_same([new.reset(), *play(new, actions)], [reseeded.reset(), *play(reseeded, actions)])
    assert reseeded.identity == new.identity


def test_taking_states_changes_nothing_and_so_does_the_number_of_threads() -> None:
    options: dict[str, Any] = {"seed": 3, "reseed_every_frames": 4 * 3 * 60, **STICKY}
    saved = AtariVector("breakout", 3, num_threads=1, **options)
    actions = actions_for(saved, 200)
    steps, states = play_and_save(saved, actions)
    plain = AtariVector("breakout", 3, num_threads=2, **options)
    assert_same(steps, [plain.reset(), *play(plain, actions)])
    # A state of one is a state of the other, also in an object that has played something else.
    plain.load_state_dict(states[77])
    assert_same(steps[78:], play(plain, actions[77:]))
    # And a restored one gives the same states again.
    plain.load_state_dict(states[77])
    plain.send(actions[77])
    plain.recv()
    np.testing.assert_equal(stored(plain.state_dict()), states[78])


@pytest.mark.parametrize(("kind", "name"), [("atari", "breakout"), ("gymnasium", "TinyGrey-v0")])
def test_rows_stay_as_they_were(kind: str, name: str) -> None:
    env = make(kind, name, 2, {"seed": 5})
    env.reset()
    steps = play(env, actions_for(env, 20))
    copies = [type(step)(*(array.copy() for array in step)) for step in steps]
    play(env, actions_for(env, 20))
    assert_same(steps, copies)


def test_a_state_before_the_first_reset() -> None:
    env = AtariVector("breakout", 2, seed=3, num_threads=1)
    state = stored(env.state_dict())
    first = env.reset()
    env.load_state_dict(state)
    with pytest.raises(RuntimeError, match="send before reset"):
        env.send(np.array([0, 0]))
    assert_same([first], [env.reset()])


@pytest.mark.parametrize(
    "change",
    [
        *({"game": "pong"}, {"num_envs": 3}, {"seed": 4}, {"repeat_action_probability": 0.25}),
        *({"full_action_space": True}, {"noop_max": 30}, {"max_frames_per_game": 18_000}),
        {"reseed_every_frames": 1000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_state_of_other_environments_is_refused_in_one_line(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"game": "breakout", "num_envs": 2, "seed": 3, "num_threads": 1}
    env = AtariVector(**arguments)
    env.reset()
    other = AtariVector(**{**arguments, **change})
    with pytest.raises(
        ValueError, match=f"of other environments: .*{next(iter(change))} "
    ) as error:
        other.load_state_dict(stored(env.state_dict()))
    assert "\n" not in str(error.value)


def test_a_journal_that_leads_elsewhere_is_noticed() -> None:
    env = AtariVector("breakout", 2, seed=3, num_threads=1)
    env.reset()
    actions = np.full((60, 2), 1)  # FIRE
    play(env, actions)
    state = stored(env.state_dict())
    state["journal"]["actions"][20:, 1] = 2  # RIGHT
    with pytest.raises(ReplayMismatchError, match="environment 1 of breakout") as error:
        env.load_state_dict(state)
    assert "ale-py" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_environment_that_is_no_function_of_its_seed_is_noticed() -> None:
    env = GymnasiumVector("TinyForgetful-v0", 2, seed=3)
    env.reset()
    play(env, actions_for(env, 20))
    with pytest.raises(ReplayMismatchError, match="TinyForgetful-v0 did not return"):
        env.load_state_dict(stored(env.state_dict()))
