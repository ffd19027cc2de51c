"""How many updates until the optimal path of a chain is learnt, for four orders of updates.

    python -m studies.chain --out docs/results/chain

One episode with one wrong turn is stored: s1 → s2 → s3 → s2 → s3 → … → goal. Every method starts
from Q = 0 and updates one stored transition at a time, with step size 1. A run has learnt the
optimal path once right is worth more than left in every state on it; a tie does not count.

Four states give the episode of five transitions of the paper's motivating example, five states
the chain `ebu/Chain-v0`. Writes chain.json, a function of the settings, and chain.png.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import scipy.stats

from ebu.run.settings import NotNegative, Positive
from ebu.tabular import (
    Transitions,
    backward_q_learning,
    prioritized_q_learning,
    uniform_q_learning,
)
from envs.chain import LEFT, RIGHT

Learner = Callable[[np.ndarray, Transitions, np.random.Generator], Iterator[np.ndarray]]

CHAINS = (4, 5)
GAMMA = 0.9
CONFIDENCE = 0.95
METHODS: dict[str, Learner] = {
    "backward": lambda q, episode, rng: backward_q_learning(q, episode, gamma=GAMMA),
    "uniform": lambda q, episode, rng: uniform_q_learning(q, episode, gamma=GAMMA, rng=rng),
    "prioritized, stored errors": lambda q, episode, rng: prioritized_q_learning(
        q, episode, gamma=GAMMA, rng=rng, current_errors=False
    ),
    "prioritized, current errors": lambda q, episode, rng: prioritized_q_learning(
        q, episode, gamma=GAMMA, rng=rng, current_errors=True
    ),
}


@dataclass(frozen=True)
class Settings:
    """What is measured and where it is written."""

    out: Path
    """Directory for chain.json and chain.png."""
    runs: Positive = 10_000
    """Runs of each method that draws; backward sweeps draw nothing, so one run tells all."""
    updates: Positive = 120
    """Updates of each run, one transition each."""
    seed: NotNegative = 0
    """Seed of all draws; every method of every chain has its own stream."""


class Needed(NamedTuple):
    """Updates until a probability is reached; None where it is not.

    `earliest` and `latest` are by the high and low ends of the intervals; low ends never reach 1.
    """

    updates: int | None
    earliest: int | None
    latest: int | None


@dataclass(frozen=True)
class Curve:
    """How many of `runs` runs had learnt after 0, 1, 2, … updates.

    A method that is not `drawn` has no randomness: one run gives the exact probability.
    """

    learnt: np.ndarray
    runs: int
    drawn: bool

    @property
    def probability(self) -> np.ndarray:
        """Share of the runs that had learnt, (updates + 1,)."""
        return self.learnt / self.runs

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end of each probability's interval (Clopper and Pearson 1934)."""
        if not self.drawn:
            return self.probability, self.probability
        tail, missing = (1 - CONFIDENCE) / 2, self.runs - self.learnt
        # The beta distribution has no parameter 0: without successes the low end is 0, without
        # failures the high end is 1.
        low = scipy.stats.beta.ppf(tail, self.learnt, missing + 1)
        high = scipy.stats.beta.isf(tail, self.learnt + 1, missing)
        return np.where(self.learnt == 0, 0.0, low), np.where(missing == 0, 1.0, high)

    def updates_needed(self, level: float) -> Needed:
        """First update with at least this probability."""
        low, high = self.interval
        return Needed(
            *(
                int((values >= level).argmax()) if (values >= level).any() else None
                for values in (self.probability, high, low)
            )
        )


def stored_episode(num_states: int) -> Transitions:
    """Play right, right, left, then right up to the goal, in the environment."""
    env = gymnasium.make("ebu/Chain-v0", num_states=num_states)
    state, _ = env.reset(seed=0)
    steps = []
    for action in (RIGHT, RIGHT, LEFT, *[RIGHT] * (num_states - 2)):
        next_state, reward, terminated, _, _ = env.step(np.int64(action))
        steps.append((state, action, float(reward), next_state, terminated))
        state = next_state
    env.close()
    return Transitions(*(np.array(field) for field in zip(*steps, strict=True)))


def has_learnt(q: np.ndarray) -> np.ndarray:
    """Whether right is worth more than left in all states before the goal: (…, S, 2) → (…)."""
    return np.asarray((q[..., :-1, RIGHT] > q[..., :-1, LEFT]).all(-1))


def measure(settings: Settings, num_states: int) -> dict[str, Curve]:
    """The curve of every method on one chain."""
    episode = stored_episode(num_states)
    streams = np.random.SeedSequence([settings.seed, num_states]).spawn(len(METHODS))
    curves = {}
    for (method, learner), stream in zip(METHODS.items(), streams, strict=True):
        drawn = method != "backward"
        runs = settings.runs if drawn else 1
        q = np.zeros((runs, num_states, 2))
        tables = learner(q, episode, np.random.default_rng(stream))
        learnt = [has_learnt(table).sum() for table in (q, *islice(tables, settings.updates))]
        curves[method] = Curve(np.array(learnt), runs, drawn)
    return curves
