"""What all vector environments share, on environments written down by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.vector import (
    Journal,
    JournaledVector,
    Outcome,
    ReplayMismatchError,
    checked_actions,
    environment_seed,
)


class Scripted(JournaledVector):
    """One environment whose lives and ends are a list; its frame counts the steps since a reset.

    Each entry is (lives, how the game stands): "" goes on, "t" terminated, "c" cut. The row after
    an end restarts the list.
    """

    def __init__(self, script: list[tuple[int, str]], reseed_after_steps: int = 10**9) -> None:
        super().__init__(
            num_envs=1,
            num_actions=3,
            seed=0,
            reseed_after_steps=reseed_after_steps,
            identity={"game": "scripted"},
            engine="a list",
        )
        self.script = script
        self.seeds: list[int] = []

    def _outcome(self) -> Outcome:
        lives, end = self.script[self.position]
        return Outcome(
            frames=np.array([[self.position]], dtype=np.float32),
            rewards=np.array([1.0], dtype=np.float32),
            terminated=np.array([end == "t"]),
            truncated=np.array([end == "c"]),
            lives=np.array([lives]),
        )

    def _reset(self, mask: np.ndarray, seeds: list[int]) -> Outcome:
        assert mask.all()
        self.seeds += seeds
        self.position = 0
        return self._outcome()._replace(rewards=np.zeros(1, dtype=np.float32))

    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        self.position += 1
        if self.script[self.position - 1][1]:
            self.position = 0

    def _collect(self) -> Outcome:
        return self._outcome()

    def _close(self) -> None:
        pass


def lost_lives(script: list[tuple[int, str]]) -> list[bool]:
    """`life_lost` of the steps through a script, its first row being the reset."""
    env = Scripted(script)
    lost = [bool(env.reset().life_lost[0])]
    for _ in script[1:]:
        env.send(np.array([0]))
        lost.append(bool(env.recv().life_lost[0]))
    return lost


def test_a_lost_life_is_a_drop_of_the_counter() -> None:
    assert lost_lives([(3, ""), (3, ""), (2, ""), (2, ""), (1, "")]) == [
        *[False, False, True, False, True]
    ]


def test_a_drop_to_zero_while_the_game_goes_on_is_a_lost_life() -> None:
    assert lost_lives([(1, ""), (0, ""), (0, ""), (0, "t")]) == [False, True, False, False]


def test_a_gained_life_is_no_lost_life() -> None:
    assert lost_lives([(0, ""), (11, ""), (12, "")]) == [False, False, False]


def test_the_game_over_is_no_lost_life() -> None:
    assert lost_lives([(1, ""), (0, "t")]) == [False, False]


def test_a_life_lost_in_the_last_step_before_the_time_limit_is_told() -> None:
    assert lost_lives([(2, ""), (1, "c")]) == [False, True]


def test_fewer_lives_at_the_start_of_the_next_game_are_no_lost_life() -> None:
    env = Scripted([(2, ""), (5, "c")])
    env.reset()
    for expected_start in (False, True, False, True):
        env.send(np.array([0]))
        step = env.recv()
        assert step.started[0] == expected_start
        assert not step.life_lost[0]


def test_reseeding_waits_for_the_end_of_the_game() -> None:
    env = Scripted([(0, "")] * 9 + [(0, "t")], reseed_after_steps=12)
    env.reset()
    seedings = []
    for _ in range(45):
        env.send(np.array([0]))
        env.recv()
        seedings.append(len(env.seeds))
    # Games take 10 steps, the row of the next start included. The limit of 12 steps is reached in
    # the second game; the third begins with a seed, at step 20, and so on.
    assert seedings == [1] * 19 + [2] * 20 + [3] * 6
    assert env.seeds == [environment_seed(0, 0, count) for count in range(3)]


def test_each_reset_begins_other_games() -> None:
    env = Scripted([(0, "")])
    env.reset()
    env.reset()
    assert env.seeds == [environment_seed(0, 0, 0), environment_seed(0, 0, 1)]


def test_a_restored_state_that_is_not_the_saved_one_is_refused() -> None:
    env = Scripted([(0, "")] * 9)
    env.reset()
    for _ in range(4):
        env.send(np.array([1]))
        env.recv()
    state = env.state_dict()
    other = Scripted([(0, "")] * 4 + [(1, "")] * 5)
    with pytest.raises(ReplayMismatchError, match=r"environment 0 of scripted .* lives") as e:
        other.load_state_dict(state)
    assert "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match="before reset"):
        other.send(np.array([0]))


def test_a_reward_that_is_no_number_does_not_prevent_restoring() -> None:
    class NoNumber(Scripted):
        def _collect(self) -> Outcome:
            return self._outcome()._replace(rewards=np.array([np.nan], dtype=np.float32))

    env = NoNumber([(0, "")] * 9)
    env.reset()
    env.send(np.array([1]))
    env.recv()
    NoNumber([(0, "")] * 9).load_state_dict(env.state_dict())


def test_calls_out_of_order_are_refused() -> None:
    env = Scripted([(0, "")] * 9)
    with pytest.raises(RuntimeError, match="send before reset"):
        env.send(np.array([0]))
    with pytest.raises(RuntimeError, match="recv without send"):
        env.recv()
    env.reset()
    env.send(np.array([0]))
    state: dict[str, Any] = {}
    for what, call in {
        "send": lambda: env.send(np.array([0])),
        "reset": env.reset,
        "state_dict": env.state_dict,
        "load_state_dict": lambda: env.load_state_dict(state),
    }.items():
        with pytest.raises(RuntimeError, match=f"{what} between send and recv"):
            call()
    env.recv()
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="send after close"):
        env.send(np.array([0]))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1], "shape"),
        ([[0, 1, 2]], "shape"),
        (1, "shape"),
        ([0.0, 1.0, 2.0], "integers"),
        ([True, False, True], "integers"),
        (["0", "1", "2"], "integers"),
        ([0, 1, 4], r"0\.\.3"),
        ([0, -1, 2], r"0\.\.3"),
        ([0, 2**40, 2], r"0\.\.3"),
    ],
)
def test_bad_actions_are_refused_in_one_line(actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        checked_actions(np.array(actions), num_envs=3, num_actions=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_actions_of_any_integer_dtype_are_copied(dtype: Any) -> None:
    actions = np.array([0, 3, 1], dtype=dtype)
    checked = checked_actions(actions, num_envs=3, num_actions=4)
    assert checked.dtype == np.int64
    actions[0] = 2
    assert checked.tolist() == [0, 3, 1]


def test_environment_seeds_differ_and_fit() -> None:
    seeds = {
        environment_seed(seed, j, count)
        for seed in (0, 1, 2**70)
        for j in range(20)
        for count in range(20)
    }
    assert len(seeds) == 3 * 20 * 20
    assert min(seeds) >= 1
    assert max(seeds) < 2**31


class JournalModel:
    """A list of actions for each environment."""

    def __init__(self, num_envs: int) -> None:
        self.own: list[list[int]] = [[] for _ in range(num_envs)]
        self.seedings = [0] * num_envs


@given(
    num_envs=st.integers(1, 3),
    # Each entry: so many steps, then a seeded reset of the environments in the bit mask.
    stretches=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 7)), max_size=6),
    seed=st.integers(0, 100),
)
def test_a_journal_holds_the_actions_since_each_seeded_reset(
    num_envs: int, stretches: list[tuple[int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    journal, model = Journal(num_envs), JournalModel(num_envs)
    for steps, bits in stretches:
        for row in rng.integers(256, size=(steps, num_envs)):
            journal.append(row)
            for own, action in zip(model.own, row.tolist(), strict=True):
                own.append(action)
        mask = np.array([bool(bits >> j & 1) for j in range(num_envs)])
        journal.seeded(mask)
        for j in np.flatnonzero(mask):
            model.own[j] = []
            model.seedings[j] += 1
    loaded = Journal(num_envs)
    loaded.load_state_dict(journal.state_dict())
    assert loaded.state_dict()["actions"].dtype == np.uint8
    # Nothing is kept that no environment needs.
    assert len(loaded.actions) == max(len(own) for own in model.own)
    for either in (journal, loaded):
        assert either.seedings.tolist() == model.seedings
        assert either.lengths.tolist() == [len(own) for own in model.own]
        for j in range(num_envs):
            assert either.actions[either.starts[j] :, j].tolist() == model.own[j]
    # A loaded journal goes on like the other.
    loaded.append(np.zeros(num_envs, dtype=np.int64))
    assert loaded.lengths.tolist() == [len(own) + 1 for own in model.own]
