"""Optimality tightening: which steps bound a value, and where it is drawn to."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.dqn import Dqn
from agents.optimality_tightening import OptimalityTightening, OptimalityTighteningConfig
from ebu.errors import UsageError
from tests.made_up import (
    GAMMA,
    MIXED,
    MadeUpGames,
    Place,
    Played,
    Seen,
    TableLearner,
    TwoTables,
    Update,
    check_restored_draws_the_same,
    one_stream,
    one_terminated_game,
    places,
    random_games,
    table_values,
)


def agent_of(learner: TableLearner, seed: int = 0, **config: Any) -> OptimalityTightening:
    arguments = OptimalityTighteningConfig(**{"gamma": GAMMA, "batch_size": 8, **config})
    rng = np.random.default_rng(seed)
    return OptimalityTightening(arguments, learner, rng)  # type: ignore[arg-type]


def value(state: np.ndarray, action: int | None = None, salt: int = 0) -> float:
    values = table_values(torch.from_numpy(state)[None], salt)[0]
    return float(values.max() if action is None else values[action])


def tightened(played: Played, place: Place, reach: int, penalty: float) -> tuple[float, bool]:
    """The target along what was played, and whether it differs from the one-step target."""
    env, game, step = place

    def at(k: int) -> Seen | None:
        seen = played.seen.get((env, game, step + k))
        newest, stack = played.count - 1, played.env.stack
        if seen is None:
            return None
        first = seen.step - min(stack - 1, step + k - 1)
        return seen if first > newest - played.replay.ring_length else None

    total, ahead = 0.0, []
    for k in range(reach + 1):
        seen = at(k)
        if seen is None:
            break
        total += GAMMA**k * float(np.clip(seen.reward, -1, 1))
        if seen.terminated:
            ahead.append(total)
            break
        ahead.append(total + GAMMA ** (k + 1) * value(seen.next_state))
    total, back = 0.0, []
    for k in range(reach):
        seen = at(-k - 1)
        if seen is None or seen.terminated:
            break
        total = float(np.clip(seen.reward, -1, 1)) + GAMMA * total
        back.append((value(seen.state, seen.action) - total) / GAMMA ** (k + 1))
    middle = played.seen[place]
    own = value(middle.state, middle.action, salt=1)
    terms, weights = [ahead[0]], [1.0]
    lower, upper = max(ahead[1:], default=-math.inf), min(back, default=math.inf)
    for bound, broken in ((lower, own < lower), (upper, own > upper)):
        if broken:
            terms.append(bound)
            weights.append(penalty)
    return float(np.average(terms, weights=weights)), len(terms) > 1


def check_targets(played: Played, updates: list[Update], reach: int, penalty: float) -> int:
    """Compare all targets, and count those that a bound has moved."""
    moved = 0
    for update in updates:
        played.check(update)
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            expected, tight = tightened(played, place, reach, penalty)
            assert target == pytest.approx(expected, rel=1e-4, abs=1e-4)
            moved += tight
    return moved


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = one_terminated_game([0.0, 0.5, 1.0, -0.5, 1.0], action=1)
    learner = TableLearner()
    # The target network's value of a state is the step it shows, from 1; online all are 1.2.
    monkeypatch.setattr(learner, "target_values", lambda s: s[:, -1, :1].repeat(1, 3))
    monkeypatch.setattr(learner, "values", lambda s: torch.full((len(s), 3), 1.2))
    monkeypatch.setattr(
        replay, "draw_transitions", lambda rng, count: (np.arange(5), np.zeros(5, dtype=np.int64))
    )
    agent_of(learner, gamma=0.5, batch_size=5, bound_steps=1).learn_once(replay)
    # y,               L, broken where above 1.2,   U, broken where below 1.2
    # 0 + 2/2 = 1      0 + 0.5/2 + 3/4 = 1          -                 → 1
    # 0.5 + 3/2 = 2    0.5 + 1/2 + 4/4 = 2          2 (1 − 0) = 2     → (2 + 4·2) / 5
    # 1 + 4/2 = 3      1 − 0.5/2 + 5/4 = 2          2 (2 − 0.5) = 3   → (3 + 4·2) / 5
    # −0.5 + 5/2 = 2   −0.5 + 1/2 = 0               2 (3 − 1) = 4     → 2
    # 1                -                            2 (4 + 0.5) = 9   → 1
    torch.testing.assert_close(learner.updates[0].targets, torch.tensor([1.0, 2.0, 2.2, 2.0, 1.0]))


@pytest.mark.parametrize(("reach", "penalty"), [(4, 4.0), (1, 4.0), (2, 0.25), (15, 1.0)])
def test_targets_are_those_of_what_was_played(reach: int, penalty: float) -> None:
    played, _ = one_stream(*MIXED)
    learner = TwoTables()
    agent = agent_of(learner, bound_steps=reach, bound_penalty=penalty)
    agent.learn(played.replay, updates=60)
    assert check_targets(played, learner.updates, reach, penalty) > 50
    trained = {place for update in learner.updates for place in places(update.states)}
    assert trained == set(played.seen)
    assert learner.passes == [8 * (2 * reach + 1)] * 60


def test_without_penalty_targets_are_dqn_bit_for_bit() -> None:
    played, _ = one_stream(*MIXED)
    learner, other = TwoTables(), TwoTables()
    agent = agent_of(learner, bound_penalty=0.0)
    agent.learn(played.replay, 20)
    Dqn(agent.config, other, np.random.default_rng(0)).learn(played.replay, 20)  # type: ignore[arg-type]
    for one, two in zip(learner.updates, other.updates, strict=True):
        assert all(map(torch.equal, one, two))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 40),
    reach=st.integers(1, 5),
    rounds=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=4, max_size=12),
)
def test_nothing_overwritten_bounds_a_value(
    seed: int, longest: int, reach: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(2, random_games(seed, longest)), capacity=60, seed=seed)
    learner = TwoTables()
    agent = agent_of(learner, seed, bound_steps=reach)
    for steps, updates in rounds:
        played.play(steps)
        if played.replay.num_transitions:
            agent.learn(played.replay, updates)
        check_targets(played, learner.updates, reach, 4.0)
        learner.updates.clear()


def test_a_restored_agent_draws_the_same(tmp_path: Path) -> None:
    check_restored_draws_the_same(agent_of, TwoTables, tmp_path)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"bound_steps": 0}, "--bound-steps must be positive"),
        ({"bound_penalty": -1.0}, "--bound-penalty must not be negative"),
        ({"gamma": 0.0}, "--gamma must be positive"),
    ],
)
def test_what_bounds_nothing_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        OptimalityTighteningConfig(**config).check()
