"""Which games are counted, what is known about each, and the statistics over them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebu.evaluation import Evaluation, evaluate, summarise
from envs import VectorStep
from tests.made_up import Game, MadeUpGames, games_of


class Scripted(MadeUpGames):
    """Games of given lengths in which every step earns 1, whatever is played.

    Negative lengths are games cut by the time limit. An environment repeats its last game for ever.
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        games = [[Game(abs(length), length < 0) for length in row] for row in lengths]
        super().__init__(len(lengths), games_of(*games))
        self.received: list[np.ndarray] = []

    def send(self, actions: np.ndarray) -> None:
        super().send(actions)
        self.received.append(actions)

    def recv(self) -> VectorStep:
        row = super().recv()
        return row._replace(rewards=(~row.started).astype(np.float32))


class Player:
    """Draws every action at random and remembers what it was shown."""

    def __init__(self) -> None:
        self.stacks: list[torch.Tensor] = []
        self.forced: list[np.ndarray] = []
        self.epsilons: set[float] = set()

    def __call__(
        self,
        stacks: torch.Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        assert forced_random is not None
        assert forced_random.shape == (len(stacks),)
        self.stacks.append(stacks.clone())
        self.forced.append(forced_random)
        self.epsilons.add(epsilon)
        actions = rng.integers(3, size=len(stacks))
        return actions, np.full(len(stacks), 1 / 3, dtype=np.float32)


def play(env: Scripted, episodes: int, **options: Any) -> Evaluation:
    """Evaluate a random player; an evaluation that is never stopped."""
    rng = np.random.default_rng(0)
    played = evaluate(
        options.pop("act", Player()), env, episodes=episodes, epsilon=0.1, rng=rng, **options
    )
    assert played is not None
    return played


def evaluation_of(returns: Sequence[float], capped: Sequence[bool] | None = None) -> Evaluation:
    """Games with these returns, of 400 frames each."""
    zeros = np.zeros(len(returns), dtype=np.int64)
    return Evaluation(
        returns=np.array(returns, dtype=np.float64),
        lengths_frames=zeros + 400,
        capped=np.array(capped or [False] * len(returns)),
        environments=zeros,
        starts=zeros,
        stops=zeros + 100,
        actions=[zeros],
    )


@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=4, max_size=4), min_size=1, max_size=4),
    extra=st.integers(0, 9),
)
def test_every_environment_plays_its_first_games(lengths: list[list[int]], extra: int) -> None:
    episodes = min(len(lengths) + extra, 4 * len(lengths))
    evaluation = play(Scripted(lengths), episodes)
    quotas = np.bincount(evaluation.environments, minlength=len(lengths))
    assert quotas.sum() == episodes
    assert quotas.max() - quotas.min() <= 1
    expected = [
        length for row, quota in zip(lengths, quotas, strict=True) for length in row[:quota]
    ]
    assert evaluation.returns.tolist() == expected


def test_capped_games_count_like_any_other() -> None:
    evaluation = play(Scripted([[-5, 2, -7]]), 3)
    assert evaluation.returns.tolist() == [5, 2, 7]
    assert evaluation.capped.tolist() == [True, False, True]


def test_the_actions_of_each_game_are_found_among_all_that_were_sent() -> None:
    env = Scripted([[3, 2], [4, 9]])
    evaluation = play(env, 4)
    # Between two games lies one ignored action, answered by the first frame of the next.
    assert evaluation.starts.tolist() == [0, 4, 0, 5]
    assert evaluation.stops.tolist() == [3, 6, 4, 14]
    assert [len(actions) for actions in evaluation.actions] == [6, 14]
    sent = np.stack(env.received, axis=1)
    assert all(
        (actions == sent[j, : len(actions)]).all() for j, actions in enumerate(evaluation.actions)
    )


def test_stacks_hold_zeros_before_a_game_and_never_the_game_before() -> None:
    player = Player()
    play(Scripted([[2, 2]]), 2, act=player)
    stacks = torch.cat(player.stacks)[:, :, 1]  # the game's number in each frame of the stack
    assert stacks.tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 2], [0, 2, 2]]


def test_the_first_actions_of_every_game_are_random_on_request() -> None:
    player = Player()
    play(Scripted([[4, 3]]), 2, act=player, random_start_actions=2)
    forced = np.concatenate(player.forced).tolist()
    # The fifth action is the ignored one between the games.
    assert forced == [True, True, False, False, False, True, True, False]
    assert player.epsilons == {0.1}


def test_environments_that_are_done_need_no_actions() -> None:
    player = Player()
    env = Scripted([[2], [5]])
    play(env, 2, act=player)
    assert [len(stacks) for stacks in player.stacks] == [2, 2, 1, 1, 1]
    assert [actions[0] for actions in env.received[2:]] == [0, 0, 0]
    assert player.stacks[-1][0, :, 2].tolist() == [3, 4, 5]


@pytest.mark.parametrize("steps", [0, 7])
def test_a_stopped_evaluation_returns_nothing(steps: int) -> None:
    env = Scripted([[5]])
    answers = iter([False] * steps + [True])
    stopped = evaluate(
        Player(),
        env,
        episodes=3,
        epsilon=0.1,
        rng=np.random.default_rng(0),
        should_stop=lambda: next(answers),
    )
    assert stopped is None
    assert len(env.received) == steps


@pytest.mark.parametrize("episodes", [-1, 0, 2])
def test_each_environment_needs_a_game(episodes: int) -> None:
    with pytest.raises(ValueError, match=f"3 environments cannot share {episodes} games"):
        play(Scripted([[1], [1], [1]]), episodes)


def test_small_rewards_are_summed_in_double_precision() -> None:
    class Tenths(Scripted):
        def recv(self) -> VectorStep:
            step = super().recv()
            return step._replace(
                rewards=step.rewards * np.float32(2**24 + 1 if self.step[0] == 1 else 1)
            )

    # In float32, 16777216 + 1 is 16777216.
    assert play(Tenths([[3]]), 1).returns.tolist() == [float(2**24) + 2]


def test_a_summary_by_hand() -> None:
    summary = summarise(
        evaluation_of([1, 2, 3, 6], [False, True, False, False]),
        random_score=1.0,
        human_score=5.0,
        human_table="nature2015",
    )
    # Deviation √((4 + 1 + 0 + 9) / 3) = 2.16025; Student's t with three degrees of freedom is
    # 3.18245 at 97.5 %; 3.18245 · 2.16025 / √4 = 3.43744.
    assert summary.pop("deviation") == pytest.approx(2.160247)
    assert summary.pop("interval_95") == pytest.approx([3 - 3.437435, 3 + 3.437435], rel=1e-6)
    assert summary == {
        "games": 4,
        "capped_games": 1,
        "mean": 3.0,
        "median": 2.5,
        "frames_played": 1600,
        "mean_length_frames": 400.0,
        "human_normalised": 0.5,
        "human_table": "nature2015",
    }


def test_a_summary_of_one_game_claims_no_interval() -> None:
    summary = summarise(evaluation_of([7]))
    assert summary["mean"] == summary["median"] == 7
    assert summary["deviation"] is None
    assert summary["interval_95"] is None


@pytest.mark.parametrize("human_score", [None, 3.0])
def test_no_table_is_named_without_both_reference_scores(human_score: float | None) -> None:
    summary = summarise(evaluation_of([1, 2]), human_score=human_score, human_table="nature2015")
    assert summary["human_normalised"] is None
    assert summary["human_table"] is None
