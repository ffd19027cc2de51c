"""Tabular Q-learning from stored transitions, in three orders: backward, uniform, prioritized.

Lee, Choi, Chung, *Sample-Efficient Deep Reinforcement Learning via Episodic Backward
Update*, NeurIPS 2019, Algorithm 1. All three make the same update of one transition,

    Q(s, a) ← (1 − α) Q(s, a) + α (r + γ max_a' Q(s', a'))    (terminated: target r),

in the paper with α = 1, and differ only in which stored transition comes next. Each is a
generator that yields the table after every update, without end but for `backward_sweep`.

| symbol | shape, dtype | meaning |
| --- | --- | --- |
| q | (…, S, A) float64 | Q of one run, or of several runs side by side |
| t | int, or (…) int64 | index of the updated transition: the same or its own in each run |
| gamma | float | γ in [0, 1] |
| rng | np.random.Generator | draws for all runs |

Arguments are never written to: an update returns a new table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Schaul et al., "Prioritized Experience Replay", ICLR 2016, proportional variant: P(t) ∝ p_t^0.6
# with p_t = |δ_t| + a small constant.
PRIORITY_EXPONENT = 0.6
PRIORITY_FLOOR = 1e-6


@dataclass(frozen=True)
class Transitions:
    """T stored transitions (s, a, r, s'); an episode where they follow each other in time.

    | field | shape, dtype | meaning |
    | --- | --- | --- |
    | states, next_states | (T,) int64 | s and s' in [0, S) |
    | actions | (T,) int64 | a in [0, A) |
    | rewards | (T,) float64 | r |
    | terminated | (T,) bool | s' is terminal and worth nothing; a truncated end bootstraps |
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_states: np.ndarray
    terminated: np.ndarray

    def __len__(self) -> int:
        return len(self.states)


def one_step_update(
    q: np.ndarray,
    transitions: Transitions,
    t: int | np.ndarray,
    *,
    gamma: float,
    step_size: float = 1.0,
) -> np.ndarray:
    """The table after the update of transition t with step size α in (0, 1]."""
    runs = np.indices(q.shape[:-2], sparse=True)
    next_values = q[(*runs, transitions.next_states[t])].max(-1)
    next_values = np.where(transitions.terminated[t], 0.0, next_values)
    target = transitions.rewards[t] + gamma * next_values
    updated = q.copy()
    entry = (*runs, transitions.states[t], transitions.actions[t])
    # Not q + α (target − q): with α = 1 the entry is to be the target, to the last bit.
    updated[entry] = (1.0 - step_size) * q[entry] + step_size * target
    return updated


def td_errors(q: np.ndarray, transitions: Transitions, *, gamma: float) -> np.ndarray:
    """δ = target − Q(s, a) of every stored transition: (…, T) float64."""
    next_values = q.max(-1)[..., transitions.next_states]
    targets = transitions.rewards + gamma * np.where(transitions.terminated, 0.0, next_values)
    return np.asarray(targets - q[..., transitions.states, transitions.actions])


def backward_sweep(
    q: np.ndarray,
    episode: Transitions,
    *,
    gamma: float,
    step_size: float | np.ndarray = 1.0,
) -> Iterator[np.ndarray]:
    """Algorithm 1: update an episode once from its end to its start; yields T tables.

    step_size: α for all transitions, or (T,), one for each.
    """
    step_sizes = np.broadcast_to(step_size, len(episode))
    for t in reversed(range(len(episode))):
        q = one_step_update(q, episode, t, gamma=gamma, step_size=step_sizes[t])
        yield q


def backward_q_learning(
    q: np.ndarray, episode: Transitions, *, gamma: float
) -> Iterator[np.ndarray]:
    """Sweep one stored episode backward, again and again."""
    while True:
        sweep = backward_sweep(q, episode, gamma=gamma)
        for q in sweep:
            yield q


def uniform_q_learning(
    q: np.ndarray, transitions: Transitions, *, gamma: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Draw every transition with the same probability, as DQN does."""
    while True:
        t = rng.integers(len(transitions), size=q.shape[:-2])
        q = one_step_update(q, transitions, t, gamma=gamma)
        yield q


def prioritized_q_learning(
    q: np.ndarray,
    transitions: Transitions,
    *,
    gamma: float,
    rng: np.random.Generator,
    current_errors: bool,
) -> Iterator[np.ndarray]:
    """Draw transition t with P(t) ∝ (|δ_t| + floor)^0.6 (Schaul et al. 2016, proportional).

    current_errors False: as in their replay memory, δ_t is the error found when t was last
    drawn, 1 before its first draw. True: every δ is recomputed before each draw, T
    evaluations for one update, which a replay memory of a deep network cannot afford.

    Their importance weights are left out: those scale the step size, which is 1 here.
    """
    runs = np.indices(q.shape[:-2], sparse=True)
    errors = np.ones((*q.shape[:-2], len(transitions)))
    while True:
        found = td_errors(q, transitions, gamma=gamma)
        if current_errors:
            errors = found
        t = draw_in_proportion((np.abs(errors) + PRIORITY_FLOOR) ** PRIORITY_EXPONENT, rng)
        errors[(*runs, t)] = found[(*runs, t)]
        q = one_step_update(q, transitions, t, gamma=gamma)
        yield q


def draw_in_proportion(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An index for each run, drawn in proportion to its weights: (…, T) → (…) int64."""
    cumulative = weights.cumsum(-1)
    threshold = rng.random(weights.shape[:-1])[..., None] * cumulative[..., -1:]
    # The last sum is left out: rounding may lift the threshold to it.
    return np.asarray((cumulative[..., :-1] <= threshold).sum(-1))
