"""Prioritized replay: what is drawn how often, and how the losses make up for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.double_dqn import DoubleDqn
from agents.prioritized import SMALLEST_PRIORITY, Prioritized, PrioritizedConfig
from ebu.errors import EbuError, UsageError
from ebu.sum_tree import SumTree
from tests.made_up import (
    CPU,
    GAMMA,
    MadeUpGames,
    Place,
    Played,
    TableLearner,
    Update,
    empty_replay,
    games_of,
    places,
    random_games,
    same,
    through_disk,
)

# A test of frequencies with this level fails a correct agent once in a million seeds.
ERROR_RATE = 1e-6
ALPHA = 0.6


class ErringLearner(TableLearner):
    """Errs by an amount that depends on the place alone, and notes the weights of the losses."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.weights: list[Tensor] = []

    def update(
        self, states: Tensor, actions: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert weights is not None
        super().update(states, actions, targets)
        self.weights.append(weights.clone())
        return torch.tensor(0.0), targets - error_at(states)

    def count_update(self) -> None:
        self.count += 1


class Learning:
    """The agent's view of the stand-in: its `updates` count, not the list of them."""

    device = CPU

    def __init__(self, learner: ErringLearner) -> None:
        self._learner = learner

    def __getattr__(self, name: str) -> Any:
        return self._learner.count if name == "updates" else getattr(self._learner, name)


def error_at(states: Tensor) -> Tensor:
    """A made-up error of a state, some of them negative, (B,)."""
    env, game, step = states[:, -1].unbind(1)
    return ((env * 7 + game * 13 + step * 29) % 17 - 5) / 8


def agent_of(learner: ErringLearner, seed: int = 0, **config: Any) -> Prioritized:
    arguments = PrioritizedConfig(**{"gamma": GAMMA, "batch_size": 8, **config})
    rng = np.random.default_rng(seed)
    return Prioritized(arguments, Learning(learner), rng)  # type: ignore[arg-type]


def leaf_of(played: Played, place: Place) -> int:
    step, replay = played.seen[place].step, played.replay
    return step % replay.ring_length * replay.num_streams + place[0] - 1


def tree_of(agent: Prioritized) -> SumTree:
    assert agent._tree is not None
    return agent._tree


def priority(error: float) -> float:
    return float((abs(error) + SMALLEST_PRIORITY) ** ALPHA)


def test_priorities_by_hand() -> None:
    played = Played(MadeUpGames(1, games_of([50])), capacity=100)
    played.play(3)
    learner = ErringLearner()
    agent = agent_of(learner, batch_size=2)
    agent.learn(played.replay, 1)
    # Frames 1, 2 and 3 of the first game: (7 + 13 + 29 s) % 17 − 5, in eighths.
    errors = [(49 % 17 - 5) / 8, (78 % 17 - 5) / 8, (107 % 17 - 5) / 8]
    assert errors == [10 / 8, 5 / 8, 0]
    drawn = {place[2] - 1 for place in places(learner.updates[0].states)}
    expected = [priority(errors[k]) if k in drawn else 1.0 for k in range(3)]
    leaves = tree_of(agent).leaves
    assert leaves[:3].tolist() == pytest.approx(expected, rel=1e-6)
    assert not leaves[3:].any()
    # What is played now comes in as the largest so far.
    played.play(2)
    agent._enter(played.replay)
    largest = max(priority(errors[k]) for k in drawn)
    assert leaves[3:5].tolist() == pytest.approx([max(1.0, largest)] * 2, rel=1e-6)
    assert not leaves[5:].any()


def test_a_new_transition_never_comes_in_below_1() -> None:
    played = Played(MadeUpGames(1, games_of([50])), capacity=100)
    played.play(10)
    agent = agent_of(ErringLearner())
    agent.learn(played.replay, 20)
    largest = max(float(error_at(torch.from_numpy(s.state)[None])) for s in played.seen.values())
    assert agent._largest == pytest.approx(largest + SMALLEST_PRIORITY)


def drawn_often(agent: Prioritized, learner: ErringLearner, played: Played) -> dict[Place, float]:
    """The true priorities, once all transitions have been trained on; then many draws."""
    while {place for u in learner.updates for place in places(u.states)} != set(played.seen):
        agent.learn(played.replay, 20)
    learner.updates.clear()
    learner.weights.clear()
    agent.learn(played.replay, 1500)
    return {
        place: priority(float(error_at(torch.from_numpy(seen.state)[None])))
        for place, seen in played.seen.items()
    }


def counts_of(updates: list[Update], of: set[Place]) -> dict[Place, int]:
    counts = dict.fromkeys(of, 0)
    for update in updates:
        for place in places(update.states):
            counts[place] += 1
    return counts


def test_draws_follow_the_priorities() -> None:
    played = Played(MadeUpGames(2, random_games(3, 30)), capacity=400)
    played.play(60)
    learner = ErringLearner()
    priorities = drawn_often(agent_of(learner), learner, played)
    total = sum(priorities.values())
    counts = counts_of(learner.updates, set(played.seen))
    drawn = sum(counts.values())
    # Transitions of one error are counted together, those of almost none not at all.
    observed: dict[float, int] = {}
    expected: dict[float, float] = {}
    for place, size in priorities.items():
        observed[size] = observed.get(size, 0) + counts[place]
        expected[size] = expected.get(size, 0.0) + drawn * size / total
    sizes = [size for size in expected if expected[size] > 20]
    assert len(sizes) > 10
    seen = np.array([observed[size] for size in sizes])
    awaited = np.array([expected[size] for size in sizes])
    assert seen.sum() == pytest.approx(awaited.sum(), rel=0.01)
    awaited *= seen.sum() / awaited.sum()
    assert scipy.stats.chisquare(seen, awaited).pvalue > ERROR_RATE


def test_weighted_draws_are_unbiased() -> None:
    """With beta 1 a weighted mean over draws estimates the plain mean over what is stored."""
    played = Played(MadeUpGames(2, random_games(3, 30)), capacity=400)
    played.play(60)
    learner = ErringLearner()
    agent = agent_of(learner, importance_exponent=1.0, priority_exponent=0.3)
    drawn_often(agent, learner, played)
    tree, count = tree_of(agent), played.replay.num_transitions
    quantity = {place: float(place[2] % 5) for place in played.seen}
    means = []
    for update, weights in zip(learner.updates, learner.weights, strict=True):
        drawn = places(update.states)
        shares = tree[np.array([leaf_of(played, place) for place in drawn])] / tree.total
        full = 1 / (count * shares)
        assert weights.numpy() == pytest.approx(full / full.max(), rel=1e-5)
        assert float(weights.max()) == 1.0
        means.append(np.mean([w * quantity[place] for w, place in zip(full, drawn, strict=True)]))
    mean = np.mean([quantity[place] for place in played.seen])
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    # Five standard errors: a correct estimate is further away once in 1.7 million.
    assert abs(np.mean(means) - mean) < 5 * error
    assert error < 0.05 * mean


def test_weights_by_hand_as_beta_grows() -> None:
    played = Played(MadeUpGames(1, games_of([50])), capacity=100)
    played.play(4)
    learner = ErringLearner()
    agent = agent_of(learner, batch_size=4, importance_updates=3, importance_exponent=0.4)
    for update, beta in enumerate((0.4, 0.6, 0.8, 1.0, 1.0)):
        assert agent.importance == pytest.approx(beta)
        before = agent._enter(played.replay).leaves.copy()
        agent.learn(played.replay, 1)
        drawn = places(learner.updates[update].states)
        sizes = before[[place[2] - 1 for place in drawn]]
        expected = sizes**-beta / (sizes**-beta).max()
        assert learner.weights[update].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_without_exponent_draws_are_uniform_and_weights_one() -> None:
    played = Played(MadeUpGames(2, random_games(1, 20)), capacity=400)
    played.play(40)
    learner = ErringLearner()
    agent_of(learner, priority_exponent=0.0).learn(played.replay, 600)
    counts = counts_of(learner.updates, set(played.seen))
    assert scipy.stats.chisquare(list(counts.values())).pvalue > ERROR_RATE
    assert all(bool((weights == 1).all()) for weights in learner.weights)


def test_targets_are_those_of_double_dqn() -> None:
    played = Played(MadeUpGames(2, random_games(2, 20)), capacity=400)
    played.play(40)
    learner = ErringLearner()
    agent = agent_of(learner)
    agent.learn(played.replay, 20)
    double = DoubleDqn(agent.config, learner, np.random.default_rng(0))  # type: ignore[arg-type]
    for update in learner.updates:
        seen = [played.seen[place] for place in places(update.states)]
        steps = np.array([each.step for each in seen])
        streams = np.array([place[0] - 1 for place in places(update.states)])
        assert torch.equal(update.targets, double.targets(played.replay.read(steps, streams)))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 40),
    streams=st.integers(1, 3),
    capacity=st.integers(20, 100),
    rounds=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), min_size=3, max_size=12),
)
def test_the_tree_holds_what_can_be_drawn_and_nothing_else(
    seed: int, longest: int, streams: int, capacity: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(streams, random_games(seed, longest)), capacity=capacity, seed=seed)
    replay, learner = played.replay, ErringLearner()
    agent = agent_of(learner, seed)
    known: dict[Place, float] = {}
    largest = 1.0
    entered = 0
    for steps, updates in rounds:
        played.play(steps)
        if not replay.num_transitions or not updates:
            continue
        largest_then = largest
        for _ in range(updates):
            agent.learn(replay, 1)
            for place in places(learner.updates[-1].states):
                error = float(error_at(torch.from_numpy(played.seen[place].state)[None]))
                known[place] = priority(error)
                largest = max(largest, abs(error) + SMALLEST_PRIORITY)
        expected = np.zeros(replay.ring_length * streams)
        for place, seen in played.seen.items():
            if replay.is_stored(place[0] - 1, seen.step):
                if seen.step >= entered:
                    known.setdefault(place, largest_then**ALPHA)
                expected[leaf_of(played, place)] = known[place]
        entered = replay.num_steps - 1
        assert tree_of(agent).leaves == pytest.approx(expected, rel=1e-6)
        for update in learner.updates:
            played.check(update)
        learner.updates.clear()


def test_without_transitions_there_is_nothing_to_draw() -> None:
    replay = empty_replay(capacity=40, num_streams=1, stack=2)
    with pytest.raises(ValueError, match="no transition is stored yet"):
        agent_of(ErringLearner()).learn(replay, 1)


@pytest.mark.parametrize("before", [0, 5])
def test_a_restored_agent_draws_the_same(tmp_path: Path, before: int) -> None:
    played = Played(MadeUpGames(2, random_games(4, 30)), capacity=90)
    played.play(70)
    learner, other = ErringLearner(), ErringLearner()
    agent, restored = agent_of(learner, 0), agent_of(other, 1)
    agent.learn(played.replay, before)
    restored.load_state_dict(through_disk(agent.state_dict(), tmp_path))
    other.count = learner.count
    for _ in range(4):
        played.play(15)
        for each in (agent, restored):
            each.learn(played.replay, 3)
    for one, two in zip(learner.updates[before:], other.updates, strict=True):
        assert all(map(torch.equal, one, two))
    assert all(map(torch.equal, learner.weights[before:], other.weights))
    assert same(agent.state_dict(), restored.state_dict())
    assert np.array_equal(tree_of(agent)._nodes, tree_of(restored)._nodes)


def test_values_that_are_no_numbers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(MadeUpGames(1, games_of([50])), capacity=100)
    played.play(10)
    learner = ErringLearner()
    agent = agent_of(learner)
    agent.learn(played.replay, 2)
    before = tree_of(agent).leaves.copy()
    monkeypatch.setattr(learner, "target_values", lambda s: torch.full((len(s), 3), torch.nan))
    with pytest.raises(EbuError, match="--learning-rate"):
        agent.learn(played.replay, 1)
    assert np.array_equal(tree_of(agent).leaves, before)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"priority_exponent": -0.1}, "--priority-exponent must not be negative"),
        ({"importance_exponent": 1.2}, "--importance-exponent must lie between 0 and 1"),
        ({"importance_updates": 0}, "--importance-updates must be positive"),
    ],
)
def test_what_cannot_be_drawn_by_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        PrioritizedConfig(**config).check()
