"""One-step DQN: which transitions come, and what they are trained towards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.agent import AgentConfig
from agents.dqn import Dqn
from tests.made_up import (
    GAMMA,
    MIXED,
    MadeUpGames,
    Played,
    TableLearner,
    check_restored_draws_the_same,
    games_of,
    one_step_target,
    one_stream,
    one_terminated_game,
    places,
    random_games,
)


def agent_of(learner: TableLearner, seed: int = 0, **config: Any) -> Dqn:
    arguments = AgentConfig(**{"gamma": GAMMA, "batch_size": 8, **config})
    return Dqn(arguments, learner, np.random.default_rng(seed))  # type: ignore[arg-type]


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = one_terminated_game([0.0, 0.5, 4.0, -3.0], action=1)
    learner = TableLearner()
    monkeypatch.setattr(learner, "target_values", lambda s: torch.tensor([[2.0, 10, 4]] * len(s)))
    monkeypatch.setattr(
        replay, "draw_transitions", lambda rng, count: (np.arange(4), np.zeros(4, dtype=np.int64))
    )
    for clip, expected in ((True, [9.0, 9.5, 10.0, -1.0]), (False, [9.0, 9.5, 13.0, -3.0])):
        agent_of(learner, batch_size=4, clip_rewards=clip).learn_once(replay)
        update = learner.updates.pop()
        torch.testing.assert_close(update.targets, torch.tensor(expected))
        assert update.actions.tolist() == [1, 1, 1, 1]
        assert [place[2] for place in places(update.states)] == [1, 2, 3, 4]


@pytest.mark.parametrize("clip", [True, False])
def test_targets_are_one_step_targets_of_what_was_played(clip: bool) -> None:
    played, _ = one_stream(*MIXED)
    learner = TableLearner()
    agent_of(learner, clip_rewards=clip).learn(played.replay, updates=60)
    trained = set()
    for update in learner.updates:
        assert len(update.targets) == 8
        played.check(update)
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == one_step_target(played.seen[place], clip=clip)
            trained.add(place)
    assert trained == set(played.seen)  # ends, cuts and lost lives among them


def test_transitions_are_drawn_uniformly_games_in_progress_included() -> None:
    played = Played(MadeUpGames(2, games_of([7, 30])), capacity=400)
    played.play(25)
    learner = TableLearner()
    agent_of(learner, batch_size=32).learn(played.replay, updates=300)
    counts = dict.fromkeys(played.seen, 0)
    for update in learner.updates:
        for place in places(update.states):
            counts[place] += 1
    # Fails once in a million for a uniform sampler.
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-6


def test_a_moved_target_network_is_asked_at_every_update() -> None:
    played, _ = one_stream(*MIXED)
    learner = TableLearner()
    agent = agent_of(learner)
    for salt in range(4):
        learner.salt = salt
        agent.learn(played.replay, updates=1)
        update = learner.updates[-1]
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == one_step_target(played.seen[place], salt=salt)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 40),
    rounds=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), min_size=4, max_size=15),
)
def test_nothing_overwritten_is_trained_on(
    seed: int, longest: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(2, random_games(seed, longest)), capacity=60, seed=seed)
    learner = TableLearner()
    agent = agent_of(learner, seed)
    for steps, updates in rounds:
        played.play(steps)
        if played.replay.num_transitions:
            agent.learn(played.replay, updates)
        for update in learner.updates:
            played.check(update)
            for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
                assert target == one_step_target(played.seen[place])
        learner.updates.clear()


def test_a_restored_agent_draws_the_same(tmp_path: Path) -> None:
    agent, restored = check_restored_draws_the_same(agent_of, TableLearner, tmp_path)
    assert agent.metrics() == restored.metrics()


def test_metrics_are_means_since_they_were_last_asked_for() -> None:
    played, _ = one_stream(*MIXED)
    learner = TableLearner()
    agent = agent_of(learner)
    for updates in (3, 2):
        agent.learn(played.replay, updates)
        recent = torch.stack([update.targets for update in learner.updates[-updates:]])
        metrics = agent.metrics()
        assert metrics["q/target"] == pytest.approx(float(recent.mean()), rel=1e-5)
        assert {"loss/huber", "q/mean", "q/max"} <= metrics.keys()
    assert "q/target" not in agent.metrics()
