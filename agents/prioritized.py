"""Prioritized replay, proportional (Schaul, Quan, Antonoglou, Silver 2016), on Double DQN."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from agents.agent import AgentConfig
from agents.double_dqn import DoubleDqn
from agents.learner import Learner
from ebu.errors import EbuError
from ebu.replay import EpisodicReplay
from ebu.run.cli import not_negative, positive, shares
from ebu.sum_tree import SumTree

SMALLEST_PRIORITY = 1e-6
"""Added to the size of an error, so that no transition is out of reach."""


@dataclass(frozen=True)
class PrioritizedConfig(AgentConfig):
    """Double DQN on the transitions it errs about."""

    priority_exponent: float = 0.6
    """Alpha: 0 draws uniformly, 1 in proportion to the error."""
    importance_exponent: float = 0.4
    """Beta, how far losses make up for the draws; at first, on its way to 1."""
    importance_updates: int = 40_000
    """Updates until beta is 1: a run of 1 million frames makes more, at one in four steps too."""

    def check(self) -> None:
        super().check()
        not_negative({"--priority-exponent": self.priority_exponent})
        shares({"--importance-exponent": self.importance_exponent})
        positive({"--importance-updates": self.importance_updates})


class Prioritized(DoubleDqn):
    """Transitions drawn in proportion to |error|^alpha when last trained on; Double DQN targets.

    A transition enters with the largest priority so far. The tree has a leaf for each place of the
    replay memory, 0 where no transition can be drawn.
    """

    config_type = PrioritizedConfig
    config: PrioritizedConfig

    def __init__(
        self, config: PrioritizedConfig, learner: Learner, rng: np.random.Generator
    ) -> None:
        super().__init__(config, learner, rng)
        self._tree: SumTree | None = None  # as large as the memory that is first learned from
        self._largest = 1.0
        self._entered = 0  # transitions of all steps before this one are in the tree

    def learn_once(self, replay: EpisodicReplay) -> None:
        tree = self._enter(replay)
        leaves = tree.draw(self.rng, self.config.batch_size)
        slots, streams = np.divmod(leaves, replay.num_streams)
        newest = replay.num_steps - 1
        steps = newest - (newest - slots) % replay.ring_length
        # (n P)^-β over its largest in the minibatch; n and the total cancel.
        chances = tree[leaves]
        weights = (chances.min() / chances) ** self.importance
        errors = self.train_on(replay, steps, streams, weights.astype(np.float32))
        # The one wait for the device in an update: the next draw needs these.
        priorities = errors.abs().cpu().numpy().astype(np.float64) + SMALLEST_PRIORITY
        if not np.isfinite(priorities).all():
            raise EbuError("the action values are no longer finite: try a lower --learning-rate")
        tree.set(leaves, priorities**self.config.priority_exponent)
        self._largest = max(self._largest, float(priorities.max()))

    def loss_weights(self, *given: Tensor) -> Tensor:
        return given[0]

    @property
    def importance(self) -> float:
        """Beta of the next update."""
        start = self.config.importance_exponent
        share = min(1.0, self.learner.updates / self.config.importance_updates)
        return start + (1.0 - start) * share

    def _enter(self, replay: EpisodicReplay) -> SumTree:
        """Bring the tree up to what the memory holds now: a leaf for each slot and stream."""
        streams, ring = replay.num_streams, replay.ring_length
        if self._tree is None:
            self._tree = SumTree(ring * streams)
        tree, newest = self._tree, replay.num_steps - 1
        if self._entered < newest:
            oldest = max(0, replay.num_steps - ring)
            # The oldest states may have lost frames; the newest step leads nowhere yet.
            aging = np.arange(oldest, min(oldest + replay.stack, newest))
            steps = np.arange(max(oldest, self._entered), newest + 1)
            steps = np.concatenate((aging, steps)).repeat(streams)
            of_streams = np.arange(len(steps)) % streams
            leaves = steps % ring * streams + of_streams
            largest = self._largest**self.config.priority_exponent
            values = np.where(steps < self._entered, tree[leaves], largest)
            tree.set(leaves, np.where(replay.stored(steps, of_streams), values, 0.0))
            self._entered = newest
        if not tree.total:
            raise ValueError("no transition is stored yet")
        return tree

    def state_dict(self) -> dict[str, Any]:
        leaves = np.empty(0) if self._tree is None else self._tree.leaves
        return {
            **super().state_dict(),
            "priorities": {
                "leaves": leaves.copy(),
                "largest": self._largest,
                "entered": self._entered,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        priorities = state["priorities"]
        leaves = priorities["leaves"]
        self._tree = None
        if len(leaves):
            self._tree = SumTree(len(leaves))
            self._tree.set(np.arange(len(leaves)), leaves)
        self._largest = priorities["largest"]
        self._entered = priorities["entered"]
