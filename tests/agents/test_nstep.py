"""n-step DQN: how far its windows reach, and what they sum to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.dqn import Dqn
from agents.nstep import NStep, NStepConfig
from ebu.errors import UsageError
from tests.made_up import (
    GAMMA,
    MIXED,
    MadeUpGames,
    Place,
    Played,
    TableLearner,
    Update,
    check_restored_draws_the_same,
    games_of,
    one_stream,
    one_terminated_game,
    places,
    random_games,
    table_values,
)


def agent_of(learner: TableLearner, seed: int = 0, **config: Any) -> NStep:
    arguments = NStepConfig(**{"gamma": GAMMA, "batch_size": 8, **config})
    return NStep(arguments, learner, np.random.default_rng(seed))  # type: ignore[arg-type]


def n_step_target(played: Played, place: Place, n: int) -> float:
    """The sum along what was played, as far as it goes."""
    env, game, step = place
    y, discount = 0.0, 1.0
    for k in range(n):
        seen = played.seen.get((env, game, step + k))
        if seen is None:
            break
        y += discount * float(np.clip(seen.reward, -1, 1))
        discount *= GAMMA
        if seen.terminated:
            return y
        last = seen
    return y + discount * float(table_values(torch.from_numpy(last.next_state)[None]).max())


def check_targets(played: Played, updates: list[Update], n: int) -> set[Place]:
    trained = set()
    for update in updates:
        played.check(update)
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == pytest.approx(n_step_target(played, place, n), rel=1e-5, abs=1e-5)
            trained.add(place)
    return trained


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = one_terminated_game([0.0, 0.5, 4.0, -0.5, 1.0], action=1)
    learner = TableLearner()
    # The value of a state is the step it shows, from 1.
    monkeypatch.setattr(learner, "target_values", lambda s: s[:, -1, :1].repeat(1, 3))
    monkeypatch.setattr(
        replay, "draw_transitions", lambda rng, count: (np.arange(5), np.zeros(5, dtype=np.int64))
    )
    agent_of(learner, gamma=0.5, batch_size=5).learn_once(replay)
    expected = [
        0 + 0.5 / 2 + 1 / 4 + 4 / 8,
        0.5 + 1 / 2 - 0.5 / 4 + 5 / 8,
        1 - 0.5 / 2 + 1 / 4,
        -0.5 + 1 / 2,
        1.0,
    ]
    assert learner.updates[0].targets.tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
def test_targets_are_sums_of_what_was_played(n: int) -> None:
    played, _ = one_stream(*MIXED)
    learner = TableLearner()
    agent_of(learner, n_step=n).learn(played.replay, updates=60)
    assert check_targets(played, learner.updates, n) == set(played.seen)
    assert learner.passes == [8] * 60  # one target pass of the minibatch, whatever n


def test_windows_reach_over_cuts_to_the_newest_step() -> None:
    # One long game in a ring whose segments are cut.
    played = Played(MadeUpGames(1, games_of([1000])), capacity=60)
    played.play(90)
    assert played.replay.statistics()["cuts"] > 3
    learner = TableLearner()
    agent_of(learner, n_step=4).learn(played.replay, updates=80)
    trained = check_targets(played, learner.updates, 4)
    assert (1, 1, 90) in trained  # the newest transition
    assert len(trained) > 50


def test_a_window_of_one_step_is_dqn_bit_for_bit() -> None:
    played, _ = one_stream(*MIXED)
    learner, other = TableLearner(), TableLearner()
    config = NStepConfig(gamma=GAMMA, batch_size=8, n_step=1)
    agent_of(learner, n_step=1).learn(played.replay, 20)
    Dqn(config, other, np.random.default_rng(0)).learn(played.replay, 20)  # type: ignore[arg-type]
    for one, two in zip(learner.updates, other.updates, strict=True):
        assert all(map(torch.equal, one, two))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 40),
    n=st.integers(1, 8),
    rounds=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), min_size=4, max_size=12),
)
def test_nothing_overwritten_is_trained_on_nor_summed(
    seed: int, longest: int, n: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(2, random_games(seed, longest)), capacity=60, seed=seed)
    learner = TableLearner()
    agent = agent_of(learner, seed, n_step=n)
    for steps, updates in rounds:
        played.play(steps)
        if played.replay.num_transitions:
            agent.learn(played.replay, updates)
        check_targets(played, learner.updates, n)
        learner.updates.clear()


def test_a_restored_agent_draws_the_same(tmp_path: Path) -> None:
    check_restored_draws_the_same(agent_of, TableLearner, tmp_path)


def test_no_step_is_refused() -> None:
    with pytest.raises(UsageError, match="--n-step must be positive, not 0"):
        NStepConfig(n_step=0).check()
