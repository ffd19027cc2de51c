"""Peng's Q(λ): whole segments, and the share of the value that comes back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agents.q_lambda import QLambda, QLambdaConfig
from ebu.errors import UsageError
from tests.made_up import (
    GAMMA,
    Game,
    MadeUpGames,
    Played,
    Seen,
    TableLearner,
    draws_in_order,
    one_step_target,
    one_stream,
    one_terminated_game,
    places,
    rows,
    table_values,
    targets_by_row,
    trained,
)


def agent_of(learner: Any, seed: int = 0, **config: Any) -> QLambda:
    arguments = QLambdaConfig(**{"gamma": GAMMA, "batch_size": 32, **config})
    return QLambda(arguments, learner, np.random.default_rng(seed))


def peng(segment: Sequence[Seen], trace_lambda: float) -> list[float]:
    """Targets of a played segment, from its end."""
    targets: list[float] = []
    y = 0.0
    for k, seen in reversed(list(enumerate(segment))):
        best = float(table_values(torch.from_numpy(seen.next_state)[None]).max())
        reward = float(np.clip(seen.reward, -1, 1))
        if k == len(segment) - 1:
            y = reward + (0.0 if seen.terminated else GAMMA * best)
        else:
            y = reward + GAMMA * ((1 - trace_lambda) * best + trace_lambda * y)
        targets.insert(0, y)
    return targets


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = one_terminated_game([0.0, 0.5, 1.0], action=2)
    learner = TableLearner()
    values = torch.tensor([0.4, 0.8, 0.2])
    monkeypatch.setattr(learner, "target_values", lambda s: values.repeat(len(s), 1))
    agent_of(learner, gamma=0.5, trace_lambda=0.5, batch_size=3).learn_once(replay)
    # y3 = 1; y2 = 0.5 + ½ (½·0.8 + ½·1) = 0.95; y1 = ½ (½·0.8 + ½·0.95) = 0.4375
    targets = targets_by_row(learner.updates)
    assert [targets[step, step] for step in (1, 2, 3)] == pytest.approx([0.4375, 0.95, 1.0])


@pytest.mark.parametrize("trace_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("game", [Game(45), Game(45, truncated=True), Game(1)])
@pytest.mark.parametrize("mix", [1, 4])
def test_targets_are_those_of_what_was_played(trace_lambda: float, game: Game, mix: int) -> None:
    played, _ = one_stream(game)
    learner = TableLearner()
    agent_of(learner, trace_lambda=trace_lambda, mix_segments=mix).learn(played.replay, 6)
    targets = targets_by_row(learner.updates)
    assert targets.keys() == rows(1, 1, game.length)
    expected = peng(played.transitions(1, 1), trace_lambda)
    assert [targets[1, step] for step in range(1, game.length + 1)] == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )
    for update in learner.updates:
        played.check(update)


def test_lost_lives_end_the_value_and_a_segment() -> None:
    played = Played(MadeUpGames(1, lambda env, game: Game(50, life_losses=(20,))), capacity=400)
    played.play(50)
    learner = TableLearner()
    agent_of(learner).learn(played.replay, updates=20)
    game, targets = played.transitions(1, 1), targets_by_row(learner.updates)
    expected = [*peng(game[:20], 0.7), *peng(game[20:], 0.7)]
    assert [targets[1, step] for step in range(1, 51)] == pytest.approx(expected, abs=1e-5)


def test_without_traces_targets_are_one_step_targets() -> None:
    played, _ = one_stream(40, Game(7, truncated=True), 20)
    learner = TableLearner()
    agent_of(learner, trace_lambda=0.0).learn(played.replay, updates=30)
    for update in learner.updates:
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == pytest.approx(one_step_target(played.seen[place]), abs=1e-6)


def test_segments_are_trained_from_their_end_to_their_start() -> None:
    played, segments = one_stream(96, 64)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, agent_of(learner), played.replay, 5) == [
        rows(1, 65, 96),
        rows(1, 33, 64),
        rows(1, 1, 32),
        rows(2, 33, 64),
        rows(2, 1, 32),
    ]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_no_share_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="--trace-lambda must lie between 0 and 1"):
        QLambdaConfig(trace_lambda=value).check()
