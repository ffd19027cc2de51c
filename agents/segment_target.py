"""Targets of whole segments, computed backward when a segment is drawn."""

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from agents.averages import Averages
from agents.graphs import capture
from agents.learner import Learner
from agents.settings import SegmentConfig
from agents.target import Target
from ebu.batch import Batch
from ebu.replay import EpisodicReplay
from ebu.sampling import Minibatch
from ebu.segments import Segment
from ebu.staging import Staging
from ebu.stopwatch import Stopwatch
from ebu.targets import one_step_targets

ConfigT_co = TypeVar("ConfigT_co", bound=SegmentConfig, covariant=True)

PASS_STATES = {"cpu": 256, "cuda": 512}
"""States in the largest forward pass of the target network, by kind of device."""
DIAGNOSED_DRAWS = 16
"""Diagnostics are logged for one draw in this many."""


def pass_sizes(length: int, device_type: str) -> list[int]:
    """States in each pass over a segment, at least `length` in all.

    Few sizes occur, since each is prepared once: on the CPU, where padding costs the most, whole
    groups of 8; on a GPU, where each size is a graph of its own, powers of 2 from 32.
    """
    largest = PASS_STATES[device_type]
    whole, rest = divmod(length, largest)
    if device_type == "cuda":
        last = largest if whole else max(32, 1 << (rest - 1).bit_length())
    else:
        last = -(-rest // 8) * 8
    return [largest] * whole + ([last] if rest else [])


class SegmentTarget(Target[ConfigT_co]):
    """Targets computed once for a drawn segment, and used in all of its minibatches.

    Subclasses differ in how values travel from a segment's end to its start: in `sweep`.
    """

    diagnostics: ClassVar[tuple[str, ...]] = ("q/backward_minus_one_step",)
    """Names in the logs of what `diagnose` gives."""

    def __init__(self, config: ConfigT_co, learner: Learner, stopwatch: Stopwatch) -> None:
        super().__init__(config, learner, stopwatch)
        self._staging = Staging(learner.device)
        self._draws_since_line = 0
        self._draw_averages = Averages(self.diagnostics, learner.device)
        self._pass = capture(self._next_values_at, learner.device, enabled=config.cuda_graphs)
        self._sweep = capture(self._sweep_at, learner.device, enabled=config.cuda_graphs)

    def next_values(self, batch: Batch) -> Tensor:
        """The values (…, B, A) of the next states that `sweep` takes: the target network's."""
        return self.learner.target_values(batch.next_states)

    @abstractmethod
    def sweep(
        self, batch: Batch, next_values: Tensor, length: Tensor, terminated: Tensor
    ) -> Tensor:
        """Targets of a segment's transitions, those in the padding without meaning.

        | argument | shape, dtype | meaning |
        | --- | --- | --- |
        | batch | T transitions | the segment's, and padding |
        | next_values | (…, T, A) float32 | what `next_values` gives for them |
        | length | () int64 | transitions of the segment, at most T |
        | terminated | () int64 | 1 if the value ends with the segment, 0 if it bootstraps |

        Returns (…, T) float32. Becomes part of a CUDA graph on a GPU.
        """

    def diagnose(self, batch: Batch, next_values: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """A value () for each of `diagnostics`; shapes as in `sweep`, without padding."""
        one_step = one_step_targets(
            batch.rewards, next_values, batch.terminated, gamma=self.config.gamma
        )
        return ((targets - one_step).mean(),)

    def prepare(
        self, replay: EpisodicReplay, minibatch: Minibatch
    ) -> dict[str, np.ndarray | Tensor]:
        parts = []
        for draw, first, size in minibatch.pieces:
            if draw.targets is None:
                draw.targets = self._targets_of(replay, draw.segment)
            parts.append(draw.targets.to(self.learner.device)[..., first : first + size])
        return {"targets": torch.cat(parts, dim=-1)}

    def __call__(self, batch: Batch, **prepared: Tensor) -> Tensor:
        return prepared["targets"]

    def _targets_of(self, replay: EpisodicReplay, segment: Segment) -> Tensor:
        """Targets (…, T) float32 of all transitions of a segment."""
        length = segment.length
        sizes = pass_sizes(length, self.learner.device.type)
        steps = np.arange(segment.start, segment.start + length)
        steps = np.pad(steps, (0, sum(sizes) - length), mode="edge")
        located = self._staging.upload(replay.locate(steps, np.full(len(steps), segment.stream)))
        with self.stopwatch.time("target_passes"):
            # Cloned, since a pass of the same size overwrites what the last one gave.
            passes = [self._pass(replay, part).clone() for part in located.split(sizes)]
            next_values = torch.cat(passes, dim=-2)
        with self.stopwatch.time("targets"):
            how_it_ends = self._staging.upload(np.array([length, segment.terminated]))
            targets = self._sweep(replay, located, next_values, how_it_ends)[..., :length].clone()
        if self._draws_since_line % DIAGNOSED_DRAWS == 0:
            batch = self.batch(replay, located[:length])
            self._draw_averages.add(*self.diagnose(batch, next_values[..., :length, :], targets))
        self._draws_since_line += 1
        return targets

    def _next_values_at(self, replay: EpisodicReplay, located: Tensor) -> Tensor:
        return self.next_values(self.batch(replay, located))

    def _sweep_at(
        self, replay: EpisodicReplay, located: Tensor, next_values: Tensor, how_it_ends: Tensor
    ) -> Tensor:
        return self.sweep(self.batch(replay, located), next_values, *how_it_ends)

    def metrics(self) -> dict[str, float]:
        self._draws_since_line = 0
        return self._draw_averages.take()

    def state_dict(self) -> dict[str, Any]:
        return {
            "draws_since_line": self._draws_since_line,
            "draw_averages": self._draw_averages.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws_since_line = state["draws_since_line"]
        self._draw_averages.load_state_dict(state["draw_averages"])
