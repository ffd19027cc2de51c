"""Tabular Q-learning: by hand, against value iteration on random MDPs, the draws' statistics."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ebu.tabular import (
    PRIORITY_EXPONENT,
    PRIORITY_FLOOR,
    Transitions,
    backward_sweep,
    draw_in_proportion,
    one_step_update,
    prioritized_q_learning,
    td_errors,
    uniform_q_learning,
)

# A sampler's test fails by chance once in a million runs of it, if it is right; and its seed is
# fixed, so either always or never.
ERROR_RATE = 1e-6


@dataclass(frozen=True)
class Mdp:
    """Outcome j of (s, a): the state j, or, the last one, the end.

    probabilities, rewards: (S, A, S + 1) of the outcomes.
    """

    probabilities: np.ndarray
    rewards: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        num_states, num_actions, _ = self.rewards.shape
        return num_states, num_actions

    def episode(self, rng: np.random.Generator, max_steps: int = 8) -> Transitions:
        """Random actions from a random state; cut, truncated, after `max_steps` steps."""
        num_states, num_actions = self.shape
        state, steps = int(rng.integers(num_states)), []
        for action, uniform in zip(
            rng.integers(num_actions, size=max_steps), rng.random(max_steps), strict=True
        ):
            cumulative = self.probabilities[state, action].cumsum()
            outcome = int(np.searchsorted(cumulative[:-1], uniform, side="right"))
            over = outcome == num_states
            reward = self.rewards[state, action, outcome]
            steps.append((state, action, reward, 0 if over else outcome, over))
            if over:
                break
            state = outcome
        return Transitions(*(np.array(field) for field in zip(*steps, strict=True)))


def value_iteration(mdp: Mdp, gamma: float) -> np.ndarray:
    """The judge: Q* (S, A), by a thousand rounds of Bellman's optimality equation, γ ≤ 0.8."""
    expected = (mdp.probabilities * mdp.rewards).sum(-1)
    q = np.zeros(mdp.shape)
    for _ in range(1_000):
        q = expected + gamma * (mdp.probabilities[..., :-1] @ q.max(-1))
    return q


@st.composite
def mdps(draw: st.DrawFn, *, lowest_reward: float, max_states: int, max_actions: int) -> Any:
    """A deterministic MDP of random outcomes, some the end; rewards in [lowest_reward, 1]."""
    num_states = draw(st.integers(1, max_states))
    num_actions = draw(st.integers(1, max_actions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (num_states, num_actions, num_states + 1)
    probabilities = np.eye(num_states + 1)[rng.integers(num_states + 1, size=shape[:-1])]
    rewards = rng.uniform(lowest_reward, 1.0, size=shape)
    # Most transitions of sparse problems carry no reward at all.
    rewards[rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0.0
    return Mdp(probabilities, rewards), rng


def all_visited(mdp: Mdp, rng: np.random.Generator) -> list[Transitions]:
    """Episodes, as many as it takes until every action was taken in every state."""
    visited = np.zeros(mdp.shape, dtype=bool)
    episodes = []
    while not visited.all():
        episodes.append(mdp.episode(rng))
        visited[episodes[-1].states, episodes[-1].actions] = True
    return episodes


def joined(episodes: list[Transitions]) -> Transitions:
    """All their transitions."""
    names = ("states", "actions", "rewards", "next_states", "terminated")
    return Transitions(*(np.concatenate([getattr(e, name) for e in episodes]) for name in names))


def last(tables: Iterator[np.ndarray]) -> np.ndarray:
    *_, table = tables
    return table


def rounds_of_sweeps(
    q: np.ndarray, episodes: list[Transitions], gamma: float
) -> Iterator[np.ndarray]:
    """The table after every episode was swept once, twice, …"""
    while True:
        for episode in episodes:
            q = last(backward_sweep(q, episode, gamma=gamma))
        yield q


# s1 → s2 → s3 → s2 → s3 → s4, the goal; 0 is left, 1 right.
EPISODE = Transitions(
    states=np.array([0, 1, 2, 1, 2]),
    actions=np.array([1, 1, 0, 1, 1]),
    rewards=np.array([0.0, 0.0, 0.0, 0.0, 1.0]),
    next_states=np.array([1, 2, 1, 2, 3]),
    terminated=np.array([False, False, False, False, True]),
)


def test_a_backward_sweep_of_the_chain_by_hand() -> None:
    tables = list(backward_sweep(np.zeros((4, 2)), EPISODE, gamma=0.5))
    changes = [
        (2, 1, 1.0),  # s3 → s4: the reward
        (1, 1, 0.5),  # s2 → s3
        (2, 0, 0.25),  # s3 → s2, the wrong turn: ½ · ½, less than 1
        (1, 1, 0.5),  # s2 → s3 again
        (0, 1, 0.25),  # s1 → s2
    ]
    expected = np.zeros((4, 2))
    assert len(tables) == len(changes)
    for table, (state, action, value) in zip(tables, changes, strict=True):
        expected[state, action] = value
        assert (table == expected).all()


def test_an_update_by_hand_with_a_step_size() -> None:
    q = np.array([[1.0, 2.0], [3.0, 8.0]])
    steps = Transitions(
        states=np.array([0, 0]),
        actions=np.array([1, 1]),
        rewards=np.array([1.0, 1.0]),
        next_states=np.array([1, 1]),
        terminated=np.array([False, True]),
    )
    # ¾ · 2 + ¼ (1 + ½ · 8) = 2.75; terminated: ¾ · 2 + ¼ · 1 = 1.75
    for t, value in ((0, 2.75), (1, 1.75)):
        updated = one_step_update(q, steps, t, gamma=0.5, step_size=0.25)
        assert updated.tolist() == [[1.0, value], [3.0, 8.0]]
    assert q.tolist() == [[1.0, 2.0], [3.0, 8.0]]
    assert td_errors(q, steps, gamma=0.5).tolist() == [3.0, -1.0]


def test_a_sweep_takes_one_step_size_for_each_transition() -> None:
    halved = list(backward_sweep(np.zeros((4, 2)), EPISODE, gamma=0.5, step_size=0.5))
    sizes = np.array([1.0, 0.0, 0.0, 1.0, 0.5])
    own = list(backward_sweep(np.zeros((4, 2)), EPISODE, gamma=0.5, step_size=sizes))
    assert halved[0].tolist() == own[0].tolist() == [[0, 0], [0, 0], [0, 0.5], [0, 0]]
    # s2 → s3 takes ½ · ½ in full, s1 → s2 takes ½ · ¼, the two between are left out.
    assert own[-1].tolist() == [[0, 0.125], [0, 0.25], [0, 0.5], [0, 0]]


@given(
    mdps(lowest_reward=-1.0, max_states=5, max_actions=3),
    st.sampled_from([(), (1,), (4,), (2, 3)]),
)
def test_runs_side_by_side_are_the_runs_alone(
    problem: tuple[Mdp, np.random.Generator], shape: tuple[int, ...]
) -> None:
    mdp, rng = problem
    episode = mdp.episode(rng)
    q = rng.normal(size=(*shape, *mdp.shape))
    t = rng.integers(len(episode), size=shape)
    updated = one_step_update(q, episode, t, gamma=0.9, step_size=0.3)
    errors = td_errors(q, episode, gamma=0.9)
    swept = last(backward_sweep(q, episode, gamma=0.9))
    assert errors.shape == (*shape, len(episode))
    for run in np.ndindex(shape):
        alone = one_step_update(q[run], episode, int(t[run]), gamma=0.9, step_size=0.3)
        assert (updated[run] == alone).all()
        assert (errors[run] == td_errors(q[run], episode, gamma=0.9)).all()
        assert (swept[run] == last(backward_sweep(q[run], episode, gamma=0.9))).all()


# Targets grow with the values of the next states, also in floating point, and with rewards of no
# sign they never fall below Q = 0. Updates in any order that goes on with every transition then
# climb to the same least fixed point, to the last bit.
@settings(max_examples=40)
@given(
    mdps(lowest_reward=0.0, max_states=5, max_actions=3),
    st.sampled_from([0.0, 0.5, 0.8]),
)
def test_backward_sweeps_reach_the_optimum_of_deterministic_mdps_exactly(
    problem: tuple[Mdp, np.random.Generator], gamma: float
) -> None:
    mdp, rng = problem
    episodes = all_visited(mdp, rng)
    rounds = rounds_of_sweeps(np.zeros(mdp.shape), episodes, gamma)
    stored = joined(episodes)
    settled = (q for q in islice(rounds, 1_000) if not td_errors(q, stored, gamma=gamma).any())
    assert (next(settled) == value_iteration(mdp, gamma)).all()


@pytest.mark.parametrize("order", ["uniform", "current errors", "stored errors"])
@settings(max_examples=15)
@given(problem=mdps(lowest_reward=0.0, max_states=3, max_actions=2))
def test_drawn_updates_reach_the_same_optimum(
    order: str, problem: tuple[Mdp, np.random.Generator]
) -> None:
    mdp, rng = problem
    stored, gamma = joined(all_visited(mdp, rng)), 0.5
    q = np.zeros(mdp.shape)
    if order == "uniform":
        tables = uniform_q_learning(q, stored, gamma=gamma, rng=rng)
    else:
        tables = prioritized_q_learning(
            q, stored, gamma=gamma, rng=rng, current_errors=order == "current errors"
        )
    settled = (q for q in islice(tables, 50_000) if not td_errors(q, stored, gamma=gamma).any())
    assert (next(settled) == value_iteration(mdp, gamma)).all()


@settings(max_examples=40)
@given(
    mdps(lowest_reward=-1.0, max_states=5, max_actions=3),
    st.sampled_from([0.0, 0.5, 0.8]),
)
def test_every_round_of_sweeps_shrinks_the_error_by_gamma(
    problem: tuple[Mdp, np.random.Generator], gamma: float
) -> None:
    mdp, rng = problem
    episodes = all_visited(mdp, rng)
    optimum = value_iteration(mdp, gamma)
    bound = float(np.abs(optimum).max())
    for q in islice(rounds_of_sweeps(np.zeros(mdp.shape), episodes, gamma), 20):
        bound = gamma * bound + 1e-14  # and rounding
        assert np.abs(q - optimum).max() <= bound


def assert_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    expected = counts.sum() * probabilities / probabilities.sum()
    assert expected.min() >= 5
    assert scipy.stats.chisquare(counts, expected).pvalue > ERROR_RATE


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1.0, 2.0, 5.0], [1e-9, 3e-9, 2e-9]])
def test_draws_are_in_proportion_to_the_weights(weights: list[float]) -> None:
    drawn = draw_in_proportion(np.tile(weights, (20_000, 1)), np.random.default_rng(1))
    counts = np.bincount(drawn, minlength=len(weights))
    if len(weights) == 1:
        assert counts.tolist() == [20_000]
    else:
        assert_frequencies(counts, np.array(weights))


def test_no_weight_no_draw_and_every_run_has_its_own_weights() -> None:
    weights = np.array([[0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    rng = np.random.default_rng(2)
    assert all((draw_in_proportion(weights, rng) == [1, 0, 2]).all() for _ in range(1_000))


# Three games of one step, each in a state of its own: an update shows as the value of its state.
REWARDS = np.array([1.0, -0.5, 0.1])
GAMES = Transitions(
    states=np.arange(3),
    actions=np.zeros(3, dtype=np.int64),
    rewards=REWARDS,
    next_states=np.arange(3),
    terminated=np.ones(3, dtype=bool),
)
RUNS = 100_000


def updated_after(tables: Iterator[np.ndarray], updates: int) -> np.ndarray:
    """How many runs have updated {}, {0}, {1}, {0, 1}, {2}, … after that many updates, (8,)."""
    q = next(islice(tables, updates - 1, None))
    return np.bincount((q[..., 0] != 0) @ np.array([1, 2, 4]), minlength=8)


def sets_after_two(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Probabilities of `updated_after` two draws: of the first, and of the second given it."""
    sets = np.zeros(8)
    for i in range(3):
        for j in range(3):
            sets[1 << i | 1 << j] += first[i] * second[i, j]
    return sets[[1, 2, 3, 4, 5, 6]]


def in_sum_one(weights: np.ndarray) -> np.ndarray:
    shares: np.ndarray = weights / weights.sum(-1, keepdims=True)
    return shares


def test_uniform_draws_are_uniform_and_independent() -> None:
    tables = uniform_q_learning(
        np.zeros((RUNS, 3, 1)), GAMES, gamma=0.9, rng=np.random.default_rng(3)
    )
    third = np.full(3, 1 / 3)
    counts = updated_after(tables, 2)
    assert_frequencies(counts[[1, 2, 3, 4, 5, 6]], sets_after_two(third, np.tile(third, (3, 1))))


@pytest.mark.parametrize("current_errors", [False, True])
def test_prioritized_draws_follow_the_td_errors(current_errors: bool) -> None:
    tables = prioritized_q_learning(
        np.zeros((RUNS, 3, 1)),
        GAMES,
        gamma=0.9,
        rng=np.random.default_rng(4),
        current_errors=current_errors,
    )
    # Stored: 1 before the first draw, then the error found by it. Current: 0 after an update.
    before = REWARDS if current_errors else np.ones(3)
    after = np.zeros(3) if current_errors else REWARDS
    errors = np.abs(np.where(np.eye(3, dtype=bool), after, before))
    first = in_sum_one((np.abs(before) + PRIORITY_FLOOR) ** PRIORITY_EXPONENT)
    second = in_sum_one((errors + PRIORITY_FLOOR) ** PRIORITY_EXPONENT)
    expected = sets_after_two(first, second)
    counts = updated_after(tables, 2)[[1, 2, 3, 4, 5, 6]]
    assert counts.sum() == RUNS
    if current_errors:
        # One game twice: about one run in 4,000, too few to count game by game.
        twice = [0, 1, 3]
        expected = np.append(np.delete(expected, twice), expected[twice].sum())
        counts = np.append(np.delete(counts, twice), counts[twice].sum())
    assert_frequencies(counts, expected)
