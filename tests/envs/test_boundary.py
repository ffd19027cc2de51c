"""Faults of environments become one line each, with the environment's index and its step."""

import re
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import tests.envs.tiny  # noqa: F401 (registers its environments)
import tests.faulty as faulty
from envs import MOST_STEPS, AtariVector, EnvironmentFault, UnknownGameError, Variant, make_vector
from envs.boundary import Environment, Recipe, parse_args
from envs.determinism import find_difference
from envs.gymnasium_vector import GymnasiumVector
from envs.protocols import PROTOCOLS
from envs.vector import VectorEnvironment
from envs.watchdog import Watchdog
from tests.envs.play import actions_for, play

PAPER = PROTOCOLS["paper"]


class Slip(faulty.Base):
    """Returns what it is told to at its fifth step: from `step`, or from the second `reset`."""

    def __init__(self, render_mode: str | None = None, **returned: Any) -> None:
        super().__init__(render_mode)
        self.returned, self.games = returned, 0

    def reset(self, **kwargs: Any) -> Any:
        self.games += 1
        started = super().reset(**kwargs)
        return self.returned["reset"] if "reset" in self.returned and self.games == 2 else started

    def step(self, action: Any) -> Any:
        usual = super().step(action)
        if self.t != 5:
            return usual
        if self.returned.get("exits"):
            raise SystemExit(3)
        if "step" in self.returned:
            return self.returned["step"]
        names = ("observation", "reward", "terminated", "truncated", "info")
        return tuple(self.returned.get(n, u) for n, u in zip(names, usual, strict=True))


gymnasium.register("Slip-v0", Slip, disable_env_checker=True)
SEEN = np.ones(4, np.float32)


@pytest.mark.parametrize(
    "returned",
    [
        {"observation": 1.0},
        {"observation": np.ones((1, 4), np.float32)},
        {"observation": None},
        {"observation": np.array([1, np.inf, 1, 1], np.float32)},
        {"observation": [[1], [1, 2]]},
        {"reward": float("nan")},
        {"reward": float("-inf")},
        {"reward": 1e39},
        {"reward": None},
        {"reward": "1"},
        {"reward": np.ones(1)},
        {"reward": 1j},
        {"reward": [1.0]},
        {"terminated": None},
        {"terminated": 0.5},
        {"truncated": np.array([True])},
        {"step": (SEEN, 1.0, False, {})},
        {"step": (SEEN, 1.0, False, False, {}, 1)},
        {"step": None},
        {"step": [SEEN, 1.0, False, False]},
        {"exits": True},
        {"reset": SEEN},
        {"reset": (SEEN, {}, 1)},
        {"reset": (SEEN, None)},
        {"info": None},
        {"info": [("lives", 3)]},
    ],
)
def test_what_is_no_step_or_reset_is_refused_where_it_enters(returned: dict[str, Any]) -> None:
    env = GymnasiumVector(Recipe("Slip-v0", returned), 2, seed=1)
    env.reset()
    with pytest.raises(EnvironmentFault) as fault:
        play(env, actions_for(env, 40))
    where = "reset" if "reset" in returned else "step 5 of its game 1"
    assert re.match(f"environment 0 of Slip-v0, .*{where}", str(fault.value))
    assert "\n" not in str(fault.value)


def ill(**members: Any) -> Any:
    """An environment with these attributes, of which exceptions are raised when they are read."""

    def give(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def attribute(value: Any) -> property:
        return property(lambda _: give(value))

    attributes = {name: attribute(value) for name, value in members.items()}
    usual = {"__init__": lambda _: None, "observation_space": spaces.Box(0, 1, (4,))}
    return type("Ill", (faulty.Base,), {**usual, **attributes})()


def register_ill(make: Callable[..., Any]) -> None:
    gymnasium.registry.pop("Ill-v0", None)
    gymnasium.register("Ill-v0", make, disable_env_checker=True)


def changed(space: spaces.Space[Any], **attributes: Any) -> spaces.Space[Any]:
    for name, value in attributes.items():
        setattr(space, name, value)
    return space


def nothing(env: Any) -> None:
    """A wrapper without its `return`."""


def some_words(env: Any) -> str:
    return "wrapped"


IMAGE = spaces.Box(0, 0, (84, 84, 3), np.float32)
UNBOUNDED = changed(spaces.Box(0, 1, (84, 84)), high=np.full((84, 84), np.nan))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"action_space": AttributeError("none")}, "its action_space raised AttributeError: none"),
        ({"action_space": None}, "has actions None"),
        ({"action_space": changed(spaces.Discrete(2), n=0)}, "has 0 actions"),
        ({"action_space": changed(spaces.Discrete(2), n=None)}, "spaces cannot be read: TypeError"),
        ({"observation_space": None}, "observation_space None, which is no space"),
        ({"observation_space": OSError("lost")}, "its observation_space raised OSError: lost"),
        ({"observation_space": IMAGE}, "one lowest and one highest"),
        ({"observation_space": UNBOUNDED}, "one lowest and one highest"),
        ({"observation_space": spaces.Box(0, 1, (0,))}, "which are empty"),
        ({"metadata": OSError("lost")}, "its metadata raised OSError: lost"),
    ],
)
def test_an_environment_with_ill_attributes_is_refused_in_one_line(
    members: dict[str, Any], words: str
) -> None:
    register_ill(lambda **_: ill(**members))
    with pytest.raises(ValueError, match=words) as error:
        made("Ill-v0")
    assert "Ill-v0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"render_modes": None}, {"render_modes": 3}, "rgb_array"]
)
def test_without_a_list_of_its_render_modes_an_environment_has_no_pictures(metadata: Any) -> None:
    register_ill(lambda **_: ill(metadata=metadata))
    assert not Environment(Recipe("Ill-v0", {}), 0, Watchdog(lambda: "")).renders


@pytest.mark.parametrize(("name", "value"), [("nothing", "None"), ("some_words", "'wrapped'")])
def test_a_wrapper_that_returns_no_environment_is_named(name: str, value: str) -> None:
    wrapper = f"{__name__}:{name}"
    words = f"--env-wrappers {wrapper} returned {value}, not an environment"
    with pytest.raises(ValueError, match=words):
        made("CartPole-v1", env_wrappers=(wrapper,))


def test_a_copy_unlike_the_first_is_a_fault() -> None:
    sizes = iter((2, 2, 3))
    register_ill(lambda **_: ill(action_space=spaces.Discrete(next(sizes))))
    env = GymnasiumVector("Ill-v0", 2, seed=1)
    with pytest.raises(EnvironmentFault, match="environment 1 of Ill-v0 has 3 actions"):
        env.reset()


@pytest.mark.parametrize(
    ("reward", "number"),
    [(1, 1.0), (True, 1.0), (np.float64(2), 2.0), (np.int8(-3), -3.0), (np.array(0.5), 0.5)],
)
def test_numbers_of_every_type_are_rewards(reward: Any, number: float) -> None:
    env = GymnasiumVector(Recipe("Slip-v0", {"reward": reward}), 1, seed=1)
    env.reset()
    assert play(env, actions_for(env, 5))[-1].rewards.tolist() == [number]


@pytest.mark.parametrize("name", ["Hangs", "HangsInReset"])
def test_a_call_that_does_not_return_is_left(name: str) -> None:
    env = GymnasiumVector(f"tests.faulty:{name}-v0", 2, seed=1)
    env.watchdog.seconds = 1
    env.reset()
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="has not answered for 1 seconds"):
        play(env, actions_for(env, 5_000))
    assert time.monotonic() - began < 30
    env.close()


def test_an_emulators_reset_is_watched_like_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    env = AtariVector("pong", 1, seed=1, num_threads=1)
    env.watchdog.seconds = 1
    monkeypatch.setattr(env._native, "reset", lambda **_: time.sleep(60))
    with pytest.raises(EnvironmentFault, match="emulator of pong has not answered for 1 seconds"):
        env.reset()
    env.close()


def test_new_games_begin_after_a_fault_with_other_seeds() -> None:
    def vector() -> GymnasiumVector:
        return GymnasiumVector("tests.faulty:Crashes-v0", 2, seed=2)

    env = vector()
    first = env.reset()
    with pytest.raises(EnvironmentFault, match="step raised ValueError: simulator lost"):
        play(env, actions_for(env, 9_000))
    fresh = vector()
    step = fresh.start_fresh(env.seedings())
    assert step.started.all()
    assert not np.array_equal(step.frames, first.frames)
    # Of a saved state, too, and what follows is restored to the bit.
    rows = play(fresh, actions_for(fresh, 30))
    again = vector()
    again.load_state_dict(fresh.state_dict())
    np.testing.assert_array_equal(again.state_dict()["reached"]["rewards"], fresh._reward_sums)
    assert len(rows) == 30


@pytest.mark.parametrize("name", ["GlobalRandom", "GlobalSeed"])
def test_games_that_differ_between_two_copies_are_noticed(name: str) -> None:
    assert "differs" in str(find_difference(Recipe(f"tests.faulty:{name}-v0", {}), 1))


@pytest.mark.parametrize("name", ["GlobalRandom", "Crashes", "WrongShape"])
def test_both_copies_are_closed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[faulty.Base] = []
    monkeypatch.setattr(faulty.Base, "close", lambda env: closed.append(env))
    find_difference(Recipe(f"tests.faulty:{name}-v0", {}), 1)
    assert len(closed) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("CartPole-v1", "ebu/Chain-v0", "tests.faulty:WrongShape-v0"),
        "tests.faulty:OneArray-v0",
    ],
)
def test_games_that_are_functions_of_their_seed_do_not_differ(name: str) -> None:
    assert find_difference(Recipe(name, {}), 1) is None


def made(game: str, training: bool = False, **variant: Any) -> VectorEnvironment:
    return make_vector(
        game, 1, seed=0, protocol=PAPER, training=training, variant=Variant(**variant)
    )


def steps_of_a_game(env: VectorEnvironment, most: int) -> int | None:
    """Steps after which the first game is truncated; None: not within those played."""
    env.reset()
    cut = [bool(step.truncated[0]) for step in play(env, actions_for(env, most))]
    return cut.index(True) + 1 if True in cut else None


class NeverTruncates(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, False, info


def test_evaluation_games_without_an_end_are_cut() -> None:
    assert steps_of_a_game(made("tests.faulty:Endless-v0", eval_max_steps=30), 100) == 30
    assert (
        steps_of_a_game(made("tests.faulty:Endless-v0", training=True, eval_max_steps=30), 100)
        is None
    )
    assert made("tests.faulty:Endless-v0").identity["endless_steps"] == 1_000
    # A limit of its own is shorter or longer than that, and stays.
    assert steps_of_a_game(made("TinyEndless-v0"), 20) == 6


@pytest.mark.parametrize("game", ["pong", "TinyEndless-v0"])
def test_evaluation_games_are_cut_after_as_many_steps_as_an_emulator_counts(game: str) -> None:
    made(game, eval_max_steps=MOST_STEPS).close()
    for steps in (0, MOST_STEPS + 1, 2**62):
        with pytest.raises(ValueError, match=f"1 to 536,870,911 steps, not after {steps:,}$"):
            made(game, eval_max_steps=steps)


def test_no_registered_limit_lets_an_evaluation_game_last_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("envs.boundary.LONGEST_STEPS", 30)
    gymnasium.register(
        "EndlessNow-v0", "tests.faulty:Endless", disable_env_checker=True, max_episode_steps=10**9
    )
    ignoring: dict[str, Any] = {"env_wrappers": (f"{__name__}:NeverTruncates",)}
    endless: tuple[tuple[str, dict[str, Any]], ...]
    endless = (("EndlessNow-v0", {}), ("TinyEndless-v0", ignoring))
    for game, variant in endless:
        assert steps_of_a_game(made(game, **variant), 100) == 30
        assert steps_of_a_game(made(game, training=True, **variant), 100) is None
        assert steps_of_a_game(made(game, eval_max_steps=40, **variant), 100) == 40


def test_arguments_and_wrappers_are_part_of_the_environment() -> None:
    wrapper = "gymnasium.wrappers:FlattenObservation"
    env = made("tests.faulty:NeedsArgument-v0", env_args=("level=3",), env_wrappers=(wrapper,))
    assert env.identity["env_args"] == {"level": 3}
    assert env.identity["env_wrappers"] == [wrapper]
    assert made("Blackjack-v1", env_wrappers=(wrapper,)).frame_shape == (45,)
    refused: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("tests.faulty:NeedsArgument-v0", {}, "cannot be made.*--env-args"),
        ("CartPole-v1", {"env_args": ("level=3",)}, "cannot be made.*level"),
        ("CartPole-v1", {"env_wrappers": ("no.such:Wrapper",)}, "cannot be made.*no"),
        ("CartPole-v1", {"env_wrappers": ("gymnasium.wrappers",)}, "cannot be made"),
        (
            "CartPole-v1",
            {"env_wrappers": ("gymnasium.wrappers:FrameStackObservation",)},
            "cannot be made: .*stack_size.* function of your own",
        ),
        ("Pendulum-v1", {}, "Discrete by an argument"),
        ("pong", {"env_args": ("level=3",)}, "gymnasium:ALE/Pong-v5"),
    )
    for game, variant, words in refused:
        with pytest.raises(ValueError, match=words) as error:
            made(game, **variant)
        assert "\n" not in str(error.value)


def test_arguments_are_read_as_values() -> None:
    words = ["a=3", "b=0.5", "c=true", "d=False", "e=dark blue", "f=[1, 2]", "g=None", "h=x=y"]
    read = {"a": 3, "b": 0.5, "c": True, "d": False, "e": "dark blue", "f": [1, 2], "g": None}
    assert parse_args(words) == {**read, "h": "x=y"}
    for word in ("level", "=3", "a b=3"):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            parse_args([word])


def test_atari_through_gymnasium_is_an_image_or_the_memory() -> None:
    assert made("gymnasium:ALE/Pong-v5").frame_shape == (84, 84)
    memory = made("gymnasium:ALE/Pong-v5", env_args=("obs_type=ram",))
    assert (memory.frame_shape, memory.observation) == ((128,), "128 bytes, scaled to [0, 1]")
    with pytest.raises(UnknownGameError):
        made("gymnasium:ALE/Pongg-v5")


def test_pictures_are_rendered_or_observed() -> None:
    env = Environment(Recipe("tests.faulty:FloatImage-v0", {}), 0, Watchdog(lambda: ""))
    picture = env.picture(env.reset(1))
    assert picture is not None
    assert (picture.shape, picture.dtype) == ((84, 84, 3), np.dtype(np.uint8))
    failing = Environment(Recipe("tests.faulty:RenderFails-v0", {}), 3, Watchdog(lambda: ""))
    with pytest.raises(EnvironmentFault, match=r"environment 3 .*render raised RuntimeError"):
        failing.picture(failing.reset(1))
