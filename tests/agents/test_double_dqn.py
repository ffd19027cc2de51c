"""Double DQN: the online network chooses, the target network values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agents import AgentConfig
from agents.double_dqn import DoubleDqn
from tests.made_up import (
    GAMMA,
    MIXED,
    Seen,
    TableLearner,
    TwoTables,
    check_restored_draws_the_same,
    one_step_target,
    one_stream,
    one_terminated_game,
    places,
    table_values,
)


def agent_of(learner: TableLearner, seed: int = 0, batch_size: int = 8) -> DoubleDqn:
    config = AgentConfig(gamma=GAMMA, batch_size=batch_size)
    return DoubleDqn(config, learner, np.random.default_rng(seed))  # type: ignore[arg-type]


def expected_target(seen: Seen) -> float:
    reward = torch.tensor(seen.reward).clamp(-1, 1)
    if seen.terminated:
        return float(reward)
    state = torch.from_numpy(seen.next_state)[None]
    chosen = int(table_values(state, 1).argmax())
    return float(reward + GAMMA * table_values(state, 0)[0, chosen])


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = one_terminated_game([0.0, 0.5, 4.0, -3.0], action=1)
    learner = TableLearner()
    monkeypatch.setattr(learner, "values", lambda s: torch.tensor([[2.0, 10, 14]] * len(s)))
    monkeypatch.setattr(learner, "target_values", lambda s: torch.tensor([[20.0, 10, 4]] * len(s)))
    monkeypatch.setattr(
        replay, "draw_transitions", lambda rng, count: (np.arange(4), np.zeros(4, dtype=np.int64))
    )
    agent_of(learner, batch_size=4).learn_once(replay)
    # Action 2 looks best; it is worth 4, where DQN would take 20.
    expected = [0.9 * 4, 0.5 + 0.9 * 4, 1 + 0.9 * 4, -1.0]
    torch.testing.assert_close(learner.updates[0].targets, torch.tensor(expected))


def test_targets_are_those_of_what_was_played() -> None:
    played, _ = one_stream(*MIXED)
    learner = TwoTables()
    agent_of(learner).learn(played.replay, updates=60)
    trained, unlike_dqn = set(), 0
    for update in learner.updates:
        played.check(update)
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == expected_target(played.seen[place])
            unlike_dqn += target != one_step_target(played.seen[place])
            trained.add(place)
    assert trained == set(played.seen)
    assert unlike_dqn > 100


def test_a_restored_agent_draws_the_same(tmp_path: Path) -> None:
    check_restored_draws_the_same(agent_of, TwoTables, tmp_path)
