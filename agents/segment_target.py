"""Targets of whole segments, computed backward when a segment is drawn."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from agents.graphs import capture
from agents.learner import Learner
from agents.log_averages import Averages
from agents.settings import AgentConfig, SegmentConfig
from agents.target import Target
from ebu.batch import Batch
from ebu.replay import EpisodicReplay
from ebu.sampling import Draw, Minibatches
from ebu.staging import Staging
from ebu.state_checks import check_state
from ebu.stopwatch import Stopwatch
from ebu.targets import one_step_targets

ConfigT_co = TypeVar("ConfigT_co", bound=SegmentConfig, covariant=True)

PASS_STATES = {"cpu": 256, "cuda": 512}
"""States in the largest forward pass of the target network, by kind of device."""
TOGETHER = {"cuda"}
"""Kinds of device that compute the segments drawn for several updates together; elsewhere one after
the other, which costs little more, and gives the same bits however many are drawn at once."""
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


def sweep_shape(lengths: np.ndarray, device_type: str) -> tuple[int, int]:
    """Rows and columns of a sweep over segments of these lengths; powers of 2 on a GPU."""
    rows, columns = len(lengths), int(lengths.max())
    if device_type == "cuda":
        return 1 << (rows - 1).bit_length(), max(32, 1 << (columns - 1).bit_length())
    return rows, columns


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
        self, batch: Batch, next_values: Tensor, lengths: Tensor, terminated: Tensor
    ) -> Tensor:
        """Targets of R segments' transitions, those in the padding without meaning.

        | argument | shape, dtype | meaning |
        | --- | --- | --- |
        | batch | (R, T) transitions | the segments', and padding |
        | next_values | (…, R, T, A) float32 | what `next_values` gives for them |
        | lengths | (R,) int64 | transitions of each segment, at most T |
        | terminated | (R,) int64 | 1 if the value ends with the segment, 0 if it bootstraps |

        Returns (…, R, T) float32. Becomes part of a CUDA graph on a GPU.
        """

    def diagnose(self, batch: Batch, next_values: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """A value () for each of `diagnostics`, of one segment without padding.

        batch: T transitions; next_values (…, T, A); targets (…, T).
        """
        one_step = one_step_targets(
            batch.rewards, next_values, batch.terminated, gamma=self.config.gamma
        )
        return ((targets - one_step).mean(),)

    def prepare(
        self, replay: EpisodicReplay, minibatches: Minibatches
    ) -> dict[str, np.ndarray | Tensor]:
        pieces = minibatches.pieces
        new = list({id(draw): draw for draw, _, _ in pieces if draw.targets is None}.values())
        together = self.learner.device.type in TOGETHER and new
        for draws in [new] if together else [[draw] for draw in new]:
            self._compute(replay, draws)
        parts = []
        for draw, first, size in pieces:
            assert draw.targets is not None
            parts.append(draw.targets.to(self.learner.device)[..., first : first + size])
        targets = torch.cat(parts, dim=-1).unflatten(-1, minibatches.steps.shape)
        return {"targets": targets.movedim(-2, 0)}

    def __call__(self, batch: Batch, **prepared: Tensor) -> Tensor:
        return prepared["targets"]

    def _compute(self, replay: EpisodicReplay, draws: Sequence[Draw]) -> None:
        """Compute the targets of drawn segments: in one row of passes, and in one sweep."""
        device = self.learner.device.type
        segments = [draw.segment for draw in draws]
        streams, starts, lengths, terminated = np.array(segments).T
        ends = lengths.cumsum()
        sizes = pass_sizes(int(ends[-1]), device)
        begins = ends - lengths
        steps = np.arange(ends[-1]) + (starts - begins).repeat(lengths)
        padding = (0, sum(sizes) - len(steps))
        located = self._staging.upload(
            replay.transitions.locate(
                np.pad(steps, padding, mode="edge"),
                np.pad(streams.repeat(lengths), padding, mode="edge"),
            )
        )
        self.learner.noise.renew(self._staging)
        with self.stopwatch.time("target_passes"):
            # Cloned, since a pass of the same size overwrites what the last one gave.
            passes = [self._pass(replay, part).clone() for part in located.split(sizes)]
            next_values = torch.cat(passes, dim=-2)
        with self.stopwatch.time("targets"):
            rows, columns = sweep_shape(lengths, device)
            # A row for each segment; its padding repeats its last transition, empty rows the first.
            of_rows = np.zeros((3, rows, 1), np.int64)
            of_rows[:, : len(draws), 0] = begins, lengths, terminated
            of_rows[1, len(draws) :] = 1
            index = of_rows[0] + np.minimum(np.arange(columns), of_rows[1] - 1)
            at = self._staging.upload(index)
            targets = self._sweep(
                replay,
                self.config,
                located[at],
                next_values[..., at, :],
                self._staging.upload(of_rows[1:, :, 0]),
            ).clone()
        for row, (draw, length) in enumerate(zip(draws, lengths.tolist(), strict=True)):
            draw.targets = targets[..., row, :length]
            if self._draws_since_line % DIAGNOSED_DRAWS == 0:
                its = slice(ends[row] - length, ends[row])
                batch = self.batch(replay, located[its])
                values = next_values[..., its, :]
                self._draw_averages.add(*self.diagnose(batch, values, draw.targets))
            self._draws_since_line += 1

    def _next_values_at(self, replay: EpisodicReplay, located: Tensor) -> Tensor:
        return self.next_values(self.batch(replay, located))

    def _sweep_at(
        self,
        replay: EpisodicReplay,
        config: AgentConfig,
        located: Tensor,
        next_values: Tensor,
        how_they_end: Tensor,
    ) -> Tensor:
        """Targets of segments; `config` is what `sweep` computes with: each is a graph."""
        return self.sweep(self.batch(replay, located), next_values, *how_they_end)

    def metrics(self) -> dict[str, float]:
        self._draws_since_line = 0
        return self._draw_averages.take()

    def state_dict(self) -> dict[str, Any]:
        return {
            "draws_since_line": self._draws_since_line,
            "draw_averages": self._draw_averages.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, {"draws_since_line": 0}, path="target/")
        self._draws_since_line = state["draws_since_line"]
        self._draw_averages.load_state_dict(state["draw_averages"])
