"""Retrace: whole segments, and traces cut by how likely what was done is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agents.retrace import Retrace, RetraceConfig
from ebu.errors import UsageError
from ebu.replay import EpisodicReplay
from tests.made_up import (
    GAMMA,
    NUM_ACTIONS,
    Game,
    Seen,
    TableLearner,
    empty_replay,
    one_step_target,
    one_stream,
    places,
    rows,
    table_values,
    targets_by_row,
)


def agent_of(learner: Any, seed: int = 0, **config: Any) -> Retrace:
    arguments = RetraceConfig(**{"gamma": GAMMA, "batch_size": 32, **config})
    return Retrace(arguments, learner, np.random.default_rng(seed))


def retrace(segment: Sequence[Seen], *, trace_lambda: float, epsilon: float) -> list[float]:
    """Targets of a segment that was played at random, from its end."""
    targets: list[float] = []
    y = 0.0
    for k, seen in reversed(list(enumerate(segment))):
        values = table_values(torch.from_numpy(seen.next_state)[None])[0].double().numpy()
        policy = np.full(NUM_ACTIONS, epsilon / NUM_ACTIONS)
        policy[values.argmax()] += 1 - epsilon
        expected = float(policy @ values)
        reward = float(np.clip(seen.reward, -1, 1))
        if k == len(segment) - 1:
            y = reward + (0.0 if seen.terminated else GAMMA * expected)
        else:
            action = segment[k + 1].action
            trace = trace_lambda * min(1.0, policy[action] * NUM_ACTIONS)
            y = reward + GAMMA * (expected + trace * (y - values[action]))
        targets.insert(0, y)
    return targets


def game_of(probabilities: Sequence[float]) -> EpisodicReplay:
    """A terminated game: reward 1 at its end, action 1 always, with these probabilities."""
    replay = empty_replay(capacity=40, num_streams=1, stack=2)
    for step, probability in enumerate([1.0, *probabilities]):
        last = step == len(probabilities)
        replay.append(
            np.full((1, 3), step + 1, dtype=np.float32),
            np.array([1]),
            np.array([float(last)], dtype=np.float32),
            terminated=np.array([last]),
            truncated=np.array([False]),
            started=np.array([step == 0]),
            probabilities=np.array([probability], dtype=np.float32),
        )
    return replay


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = TableLearner()
    values = torch.tensor([0.2, 0.8, 0.5])
    monkeypatch.setattr(learner, "target_values", lambda s: values.repeat(len(s), 1))
    agent = agent_of(learner, gamma=0.5, target_epsilon=0.3, trace_lambda=0.5, batch_size=3)
    agent.learn_once(game_of([0.1, 0.4, 1.0]))
    # π = (0.1, 0.8, 0.1), E = 0.71; c3 = ½·0.8/1 = 0.4, c2 = ½, as 0.8/0.4 is cut at 1.
    # y3 = 1; y2 = ½ (0.71 + 0.4 (1 − 0.8)) = 0.395; y1 = ½ (0.71 + ½ (0.395 − 0.8)) = 0.25375
    targets = targets_by_row(learner.updates)
    assert [targets[step, step] for step in (1, 2, 3)] == pytest.approx([0.25375, 0.395, 1.0])


@pytest.mark.parametrize(("trace_lambda", "epsilon"), [(1.0, 0.01), (0.9, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("game", [Game(45), Game(45, truncated=True), Game(1)])
@pytest.mark.parametrize("mix", [1, 4])
def test_targets_are_those_of_what_was_played(
    trace_lambda: float, epsilon: float, game: Game, mix: int
) -> None:
    played, _ = one_stream(game)
    learner = TableLearner()
    agent = agent_of(learner, trace_lambda=trace_lambda, target_epsilon=epsilon, mix_segments=mix)
    agent.learn(played.replay, 6)
    targets = targets_by_row(learner.updates)
    assert targets.keys() == rows(1, 1, game.length)
    expected = retrace(played.transitions(1, 1), trace_lambda=trace_lambda, epsilon=epsilon)
    assert [targets[1, step] for step in range(1, game.length + 1)] == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )
    for update in learner.updates:
        played.check(update)


def test_without_traces_greedy_targets_are_one_step_targets() -> None:
    played, _ = one_stream(40, Game(7, truncated=True), 20)
    learner = TableLearner()
    agent_of(learner, trace_lambda=0.0, target_epsilon=0.0).learn(played.replay, updates=30)
    for update in learner.updates:
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == pytest.approx(one_step_target(played.seen[place]), abs=1e-6)


@pytest.mark.parametrize("flag", ["trace_lambda", "target_epsilon"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_no_share_is_refused(flag: str, value: float) -> None:
    complaint = f"--{flag.replace('_', '-')} must lie between 0 and 1"
    with pytest.raises(UsageError, match=complaint):
        RetraceConfig(**{flag: value}).check()
