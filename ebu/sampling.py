"""Samplers: which stored transitions an agent trains on next.

| sampler | minibatches |
| --- | --- |
| TransitionSampler | transitions, uniformly |
| PrioritizedTransitions | transitions in proportion to their last error^alpha |

Those of whole segments are in `ebu.segment_sampling`. A sampler owns its random generator and saves
it: `state_dict` restores every later draw.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ebu.errors import EbuError
from ebu.replay import EpisodicReplay
from ebu.run.reading import LARGEST_FLOAT
from ebu.segments import Segment
from ebu.state_checks import check_range, check_state
from ebu.sum_tree import SumTree

SMALLEST_PRIORITY = 1e-6
"""Added to the size of an error, so that everything stored can be drawn."""


@dataclass
class Draw:
    """A drawn segment that is trained on from its end to its start.

    | field | meaning |
    | --- | --- |
    | segment | what is trained on: a stored segment, or the tail of one |
    | left | transitions not yet trained on: the first `left` of the segment |
    | targets | (…, T) float32, once the agent has computed them |
    | priority_ratio | smallest chance of a stored segment / this one's, when drawn |
    | start | first step of the stored segment |
    | error | sum of the absolute errors of the transitions trained on |
    """

    segment: Segment
    left: int
    start: int
    targets: Tensor | None = None
    priority_ratio: float = 1.0
    error: float = 0.0


class Piece(NamedTuple):
    """Consecutive transitions of a draw in a minibatch: `first` to `first + size - 1`."""

    draw: Draw
    first: int
    size: int


class Minibatches(NamedTuple):
    """Stored transitions for the next n updates, B each.

    | field | shape, dtype | meaning |
    | --- | --- | --- |
    | steps, streams | (n, B) int64 | where they are stored |
    | weights | (n, B) float32 or None | factors of their losses; None: all 1 |
    | pieces | | the draws they come from, in order; none for single transitions |
    """

    steps: np.ndarray
    streams: np.ndarray
    weights: np.ndarray | None = None
    pieces: tuple[Piece, ...] = ()


class Priorities:
    """What priorities mean for draws and for the weights of losses (Schaul et al. 2016).

    | argument | meaning |
    | --- | --- |
    | exponent | alpha: a draw's chance is proportional to its priority^alpha |
    | importance_exponent | beta at the start: weights are (n P)^-beta |
    | importance_updates | updates over which beta rises to 1 |

    `largest` is the largest priority so far: what was not trained on yet has it.
    """

    def __init__(
        self, exponent: float, importance_exponent: float, importance_updates: int
    ) -> None:
        self.exponent = exponent
        self.importance_exponent = importance_exponent
        self.importance_updates = importance_updates
        self.largest = 1.0
        self.updates = 0

    def weights(self, ratios: np.ndarray) -> np.ndarray:
        """Weights (B,) float32 of draws, normalised by the largest weight of the candidates.

        ratios (B,): smallest priority^alpha of the candidates over that of the draw. With the
        normalisation, n and the sum of all priorities cancel.
        """
        share = min(1.0, self.updates / self.importance_updates)
        beta = self.importance_exponent + (1.0 - self.importance_exponent) * share
        return (ratios**beta).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self.largest, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, self.state_dict(), path="sampler/")
        check_range(np.array(state["largest"]), 0, LARGEST_FLOAT, "sampler/largest")
        self.largest = state["largest"]
        self.updates = state["updates"]


class Sampler(ABC):
    """Draws minibatches from a replay memory."""

    needs_segments: bool = False
    """Whether it draws whole segments; other samplers draw single transitions."""
    wants_errors: bool = False
    """Whether `update_priorities` is to be called; reading the errors waits for the device."""

    def __init__(self, rng: np.random.Generator, batch_size: int) -> None:
        self.rng = rng
        self.batch_size = batch_size

    @abstractmethod
    def sample(self, replay: EpisodicReplay, updates: int) -> Minibatches:
        """The minibatches of the next updates: those that as many calls for one each would give.

        Raises `ValueError` while nothing is stored to draw from.
        """

    def update_priorities(  # noqa: B027
        self, replay: EpisodicReplay, minibatches: Minibatches, errors: Tensor
    ) -> None:
        """Update priorities from the errors, computed before the gradient step.

        | argument | meaning |
        | --- | --- |
        | minibatches | that of one update, as are all that a sampler which wants errors gives |
        | errors | (B,), (K, B) of K learners or (N, B) of N quantiles |
        """

    def drop_draws(self) -> None:  # noqa: B027
        """Give up draws in progress, whose targets are of a network that was reset."""

    def metrics(self) -> dict[str, float]:
        """What the logs show."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def check_loaded(  # noqa: B027
        self, replay: EpisodicReplay, target_axes: tuple[int, ...]
    ) -> None:
        """Raise `EbuError` where a state that was loaded is not of this memory and this learner."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


def refuse_other(fits: bool) -> None:
    """Raise `EbuError` unless the state of a sampler fits the replay memory."""
    if not fits:
        raise EbuError(
            "the saved sampler does not fit the saved replay memory: put back the run's own "
            "checkpoint"
        )


def absolute_errors(errors: Tensor) -> np.ndarray:
    """|errors| (B,) float64 on the host, the mean over learners or quantiles if there are several.

    Raises `EbuError` where an error is not finite.
    """
    sizes: np.ndarray = errors.abs().cpu().numpy().astype(np.float64)
    if sizes.ndim > 1:
        sizes = sizes.mean(axis=0)
    if not np.isfinite(sizes).all():
        raise EbuError("the action values are no longer finite: try a lower --learning-rate")
    return sizes


class TransitionSampler(Sampler):
    """Transitions drawn uniformly (Mnih et al. 2015)."""

    def sample(self, replay: EpisodicReplay, updates: int) -> Minibatches:
        return Minibatches(*replay.transitions.draw_minibatches(self.rng, updates, self.batch_size))


class PrioritizedTransitions(Sampler):
    """Transitions drawn in proportion to |error|^alpha (Schaul, Quan, Antonoglou, Silver 2016).

    New transitions get the largest priority so far. The tree has one leaf per place of the replay
    memory, 0 where no transition can be drawn.
    """

    wants_errors = True

    def __init__(self, rng: np.random.Generator, batch_size: int, priorities: Priorities) -> None:
        super().__init__(rng, batch_size)
        self.priorities = priorities
        self._tree: SumTree | None = None  # as large as the memory it first draws from
        self._entered = 0  # transitions of all steps before this one are in the tree

    def sample(self, replay: EpisodicReplay, updates: int) -> Minibatches:
        tree = self._enter(replay)
        places = np.stack([tree.draw(self.rng, self.batch_size) for _ in range(updates)])
        leaves = tree[places]
        weights = self.priorities.weights(leaves.min(axis=1, keepdims=True) / leaves)
        return Minibatches(*replay.transitions.newest_at(places), weights)

    def update_priorities(
        self, replay: EpisodicReplay, minibatches: Minibatches, errors: Tensor
    ) -> None:
        assert self._tree is not None
        priorities = absolute_errors(errors) + SMALLEST_PRIORITY
        places = replay.transitions.places(minibatches.steps[0], minibatches.streams[0])
        self._tree.set(places, priorities**self.priorities.exponent)
        self.priorities.largest = max(self.priorities.largest, float(priorities.max()))
        self.priorities.updates += 1

    def _enter(self, replay: EpisodicReplay) -> SumTree:
        """Bring the tree up to what the memory holds now."""
        table = replay.transitions
        if self._tree is None:
            self._tree = SumTree(table.num_places)
        tree = self._tree
        if self._entered < table.num_steps - 1:
            places, steps, stored = table.changed_since(self._entered)
            largest = self.priorities.largest**self.priorities.exponent
            values = np.where(steps < self._entered, tree[places], largest)
            tree.set(places, np.where(stored, values, 0.0))
            self._entered = table.num_steps - 1
        if not tree.total:
            raise ValueError("no transition is stored yet")
        return tree

    def check_loaded(self, replay: EpisodicReplay, target_axes: tuple[int, ...]) -> None:
        if self._tree is None:
            return
        table = replay.transitions
        refuse_other(self._tree.num_leaves == table.num_places)
        refuse_other(self._entered < table.num_steps)
        known = self._tree.leaves.copy()
        # Entered only when it draws next: a run that was never stopped has not entered them either.
        known[table.changed_since(self._entered)[0]] = 0.0
        refuse_other(bool(table.stored(*table.newest_at(known.nonzero()[0])).all()))

    def state_dict(self) -> dict[str, Any]:
        leaves = np.empty(0) if self._tree is None else self._tree.leaves
        return {
            **super().state_dict(),
            **self.priorities.state_dict(),
            "leaves": leaves.copy(),
            "entered": self._entered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        check_state(state, self.state_dict(), longer=("leaves",), path="sampler/")
        leaves = state["leaves"]
        check_range(leaves, 0, LARGEST_FLOAT, "sampler/leaves")
        self._tree = None
        if len(leaves):
            self._tree = SumTree(len(leaves))
            self._tree.set(np.arange(len(leaves)), leaves)
        self.priorities.load_state_dict(state)
        self._entered = state["entered"]
