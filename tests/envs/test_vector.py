"""What all vector environments share, on hand-written environments."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.journal import Journal
from envs.vector import (
    RawStep,
    ReplayMismatchError,
    VectorEnvironment,
    environment_seed,
    validate_actions,
)


class Scripted(VectorEnvironment):
    """One environment that follows a list; its frame counts the steps since a reset.

    Each entry is (lives, end): "" continues, "t" terminates, "c" truncates. The row after an end
    restarts the list.
    """

    num_actions, stack, frames_per_step = 3, 1, 1
    frame_shape, frame_dtype = (), np.dtype(np.float32)

    def __init__(self, script: list[tuple[int, str]], reseed_after: int = 10**9) -> None:
        super().__init__(
            "list", "scripted", 1, seed=0, reseed_every_frames=reseed_after, rules={}, engine="list"
        )
        self.script = script
        self.seeds: list[int] = []
        self.reward = 1.0

    def _outcome(self) -> RawStep:
        lives, end = self.script[self.position]
        return RawStep(
            frames=np.array([self.position], dtype=np.float32),
            rewards=np.array([self.reward], dtype=np.float32),
            terminated=np.array([end == "t"]),
            truncated=np.array([end == "c"]),
            lives=np.array([lives]),
        )

    def _reset(self, mask: np.ndarray, seeds: list[int]) -> RawStep:
        assert mask.all()
        self.seeds += seeds
        self.position = 0
        return self._outcome()._replace(rewards=np.zeros(1, dtype=np.float32))

    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        self.position += 1
        if self.script[self.position - 1][1]:
            self.position = 0

    def _collect(self) -> RawStep:
        return self._outcome()

    def _close(self) -> None:
        pass

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.send(np.array([0]))
            self.recv()


@pytest.mark.parametrize(
    ("script", "lost"),
    [
        ([(3, ""), (3, ""), (2, ""), (2, ""), (1, "")], [0, 0, 1, 0, 1]),
        ([(1, ""), (0, ""), (0, ""), (0, "t")], [0, 1, 0, 0]),
        ([(0, ""), (11, ""), (12, "")], [0, 0, 0]),
        ([(1, ""), (0, "t")], [0, 0]),
        ([(2, ""), (1, "c")], [0, 1]),
        ([(2, ""), (5, "c"), (2, "")], [0, 0, 0]),
    ],
    ids=["drop", "drop to zero", "gain", "game over", "time limit", "next game"],
)
def test_a_life_is_lost_when_lives_drop_within_a_game(
    script: list[tuple[int, str]], lost: list[int]
) -> None:
    env = Scripted(script)
    seen = [bool(env.reset().life_lost[0])]
    for _ in script[1:]:
        env.send(np.array([0]))
        seen.append(bool(env.recv().life_lost[0]))
    assert seen == [bool(each) for each in lost]


def test_reseeding_waits_for_the_end_of_the_game() -> None:
    env = Scripted([(0, "")] * 9 + [(0, "t")], reseed_after=12)
    env.reset()
    seedings = []
    for _ in range(45):
        env.play(1)
        seedings.append(len(env.seeds))
    # A game takes 10 steps, the row of the next start included. The limit of 12 steps is reached
    # in the second game; the third begins with a new seed at step 20, and so on.
    assert seedings == [1] * 19 + [2] * 20 + [3] * 6
    env.reset()
    assert env.seeds == [environment_seed(0, 0, count) for count in range(4)]


def test_a_restored_state_that_is_not_the_saved_one_is_refused() -> None:
    env = Scripted([(0, "")] * 9)
    env.reset()
    env.play(4)
    other = Scripted([(0, "")] * 4 + [(1, "")] * 5)
    with pytest.raises(ReplayMismatchError, match=r"environment 0 of scripted .* lives") as e:
        other.load_state_dict(env.state_dict())
    assert "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match="before reset"):
        other.send(np.array([0]))


def test_calls_out_of_order_are_refused() -> None:
    env = Scripted([(0, "")] * 9)
    with pytest.raises(RuntimeError, match="send before reset"):
        env.send(np.array([0]))
    with pytest.raises(RuntimeError, match="recv without send"):
        env.recv()
    env.reset()
    env.send(np.array([0]))
    for what, arguments in {
        "send": (np.array([0]),),
        "reset": (),
        "state_dict": (),
        "load_state_dict": ({},),
    }.items():
        with pytest.raises(RuntimeError, match=f"{what} between send and recv"):
            getattr(env, what)(*arguments)
    env.recv()
    with pytest.raises(ValueError, match=r"0\.\.2"):
        env.send(np.array([3]))
    assert env.position == 1  # it did not reach the environment
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="send after close"):
        env.send(np.array([0]))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        *(([0, 1], "shape"), ([[0, 1, 2]], "shape"), (1, "shape")),
        *(([0.0, 1.0, 2.0], "integers"), ([True, False, True], "integers")),
        *(([0, 1, 4], r"0\.\.3"), ([0, -1, 2], r"0\.\.3"), ([0, 2**40, 2], r"0\.\.3")),
    ],
)
def test_bad_actions_are_refused_in_one_line(actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        validate_actions(np.array(actions), num_envs=3, num_actions=4)
    assert "\n" not in str(error.value)


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


@given(
    num_envs=st.integers(1, 3),
    # Each entry: a number of steps, then a seeded reset of the environments in the bit mask.
    stretches=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 7)), max_size=6),
    seed=st.integers(0, 100),
)
def test_a_journal_holds_the_actions_since_each_seeded_reset(
    num_envs: int, stretches: list[tuple[int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    journal = Journal(num_envs)
    model: list[list[int]] = [[] for _ in range(num_envs)]
    seedings = [0] * num_envs
    for steps, bits in stretches:
        for row in rng.integers(256, size=(steps, num_envs)):
            journal.append(row)
            for own, action in zip(model, row.tolist(), strict=True):
                own.append(action)
        mask = np.array([bool(bits >> j & 1) for j in range(num_envs)])
        journal.record_seeding(mask)
        for j in np.flatnonzero(mask).tolist():
            model[j] = []
            seedings[j] += 1
    loaded = Journal(num_envs)
    loaded.load_state_dict(journal.state_dict())
    assert loaded.state_dict()["actions"].dtype == np.uint8
    assert len(loaded.actions) == max(map(len, model))  # nothing superfluous is stored
    for either in (journal, loaded):
        assert either.seedings.tolist() == seedings
        assert either.lengths.tolist() == [len(own) for own in model]
        for j in range(num_envs):
            assert either.actions[either.starts[j] :, j].tolist() == model[j]
    loaded.append(np.zeros(num_envs, dtype=np.int64))
    assert loaded.lengths.tolist() == [len(own) + 1 for own in model]
