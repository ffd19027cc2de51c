"""Agents that train on whole segments, from the end backward, with targets made at the draw.

Episodic Backward Update draws so (Lee et al. 2019, Algorithm 2). Agents of this kind differ in how
values travel from the end of a segment to its start: in their `sweep`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent, AgentConfig
from agents.averages import Averages
from agents.learner import Learner
from ebu.errors import UsageError
from ebu.replay import Batch, EpisodicReplay
from ebu.run.cli import positive
from ebu.segments import Segment
from ebu.targets import one_step_targets

PASS_STATES = {"cpu": 256, "cuda": 512}
"""States in the largest forward pass of the target network, by kind of device."""
DIAGNOSED_DRAWS = 16
"""Of so many draws one is looked into for the logs."""


@dataclass
class Draw:
    """A drawn segment on its way from the end to the start.

    | field | meaning |
    | --- | --- |
    | stream, start | where the segment begins: stream and absolute step |
    | targets | (T,) float32, computed once, when the segment was drawn |
    | left | transitions not yet trained on: the first `left` of the segment |
    """

    stream: int
    start: int
    targets: Tensor
    left: int


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


@dataclass(frozen=True)
class BackwardConfig(AgentConfig):
    """How minibatches are put together from segments."""

    mix_segments: int = 1
    """Segments side by side in a minibatch; 1 is the original of EBU."""

    def check(self) -> None:
        super().check()
        positive({"--mix-segments": self.mix_segments})
        if self.batch_size % self.mix_segments:
            raise UsageError(
                f"--mix-segments {self.mix_segments} must divide --batch-size {self.batch_size}"
            )


class BackwardAgent(Agent):
    """Whole segments drawn uniformly, trained from their end to their start.

    With `mix_segments` 1 a minibatch holds consecutive transitions of one segment; the short one
    at a segment's start is filled from the tail of a second draw, which then is let go, as in the
    original. With M > 1 it holds batch_size / M consecutive transitions of each of M segments, and
    a segment that is used up is replaced by the next draw.
    """

    config_type = BackwardConfig
    config: BackwardConfig
    needs_segments = True
    diagnostics: ClassVar[tuple[str, ...]] = ("q/backward_minus_one_step",)
    """What `diagnose` tells of a drawn segment, by its names in the logs."""

    def __init__(self, config: BackwardConfig, learner: Learner, rng: np.random.Generator) -> None:
        super().__init__(config, learner, rng)
        self.forfeited_draws = 0
        """Draws given up because their frames were about to be overwritten."""
        self._draws: list[Draw | None] = [None] * config.mix_segments
        self._draws_since_line = 0
        self._draw_averages = Averages(self.diagnostics, learner.device)
        self._pass = self.captured(self._next_values)
        self._sweep = self.captured(self._backward)

    def learn_once(self, replay: EpisodicReplay) -> None:
        share = self.config.batch_size // self.config.mix_segments
        pieces = [
            piece for lane in range(len(self._draws)) for piece in self._take(replay, lane, share)
        ]
        steps, streams, targets = (list(column) for column in zip(*pieces, strict=True))
        self.train_on(
            replay, np.concatenate(steps), np.concatenate(streams), torch.cat(targets, dim=-1)
        )

    def targets(self, batch: Batch, *given: Tensor) -> Tensor:
        return given[0]

    @abstractmethod
    def sweep(
        self, batch: Batch, next_values: Tensor, length: Tensor, terminated: Tensor
    ) -> Tensor:
        """Targets of a segment's transitions, those behind its length without meaning.

        | argument | shape, dtype | meaning |
        | --- | --- | --- |
        | batch | T transitions | the segment's, and padding |
        | next_values | (T, A) float32 | the target network's values of the next states |
        | length | () int64 | transitions of the segment, at most T |
        | terminated | () int64 | 1 if the value ends with the segment, 0 if it bootstraps |

        Returns (T,) float32. Captured on a GPU like `Agent.targets`.
        """

    def diagnose(self, batch: Batch, next_values: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """A value () for each of `diagnostics`; shapes as in `sweep`, without padding."""
        one_step = one_step_targets(
            self.clipped(batch.rewards), next_values, batch.terminated, gamma=self.config.gamma
        )
        return ((targets - one_step).mean(),)

    def _take(
        self, replay: EpisodicReplay, lane: int, count: int
    ) -> list[tuple[np.ndarray, np.ndarray, Tensor]]:
        """The next `count` transitions of a lane as (steps, streams, targets) of each segment."""
        pieces: list[tuple[np.ndarray, np.ndarray, Tensor]] = []
        draw = self._draws[lane]
        while count > 0:
            if draw is not None:
                first_step = draw.start + draw.left - min(count, draw.left)
                if not replay.is_stored(draw.stream, first_step):
                    self.forfeited_draws += 1
                    draw = None
            if draw is None:
                filling = bool(pieces) and self.config.mix_segments == 1
                draw = self._draw(replay, tail=count if filling else None)
            size = min(count, draw.left)
            draw.left -= size
            count -= size
            steps = np.arange(draw.start + draw.left, draw.start + draw.left + size)
            targets = draw.targets[..., draw.left : draw.left + size]
            pieces.append((steps, np.full(size, draw.stream), targets))
            if draw.left == 0:
                draw = None
        self._draws[lane] = draw
        return pieces

    def _draw(self, replay: EpisodicReplay, tail: int | None) -> Draw:
        """Draw a segment, or the last `tail` transitions of one, and compute its targets.

        The targets of a segment's tail depend on nothing before it.
        """
        segment = replay.draw_segment(self.rng)
        if tail is not None and tail < segment.length:
            skipped = segment.length - tail
            segment = Segment(segment.stream, segment.start + skipped, tail, segment.terminated)
        targets = self._segment_targets(replay, segment)
        return Draw(segment.stream, segment.start, targets, segment.length)

    def _segment_targets(self, replay: EpisodicReplay, segment: Segment) -> Tensor:
        """Targets (T,) float32 of all transitions of a segment."""
        length = segment.length
        sizes = pass_sizes(length, self.learner.device.type)
        steps = np.arange(segment.start, segment.start + length)
        steps = np.pad(steps, (0, sum(sizes) - length), mode="edge")
        located = replay.locate(steps, np.full(len(steps), segment.stream))
        with self.timed("target_passes"):
            ends = np.cumsum(sizes)
            # Cloned, since a pass of the same size overwrites what the last one gave.
            next_values = torch.cat(
                [
                    self._pass(replay, located[end - size : end]).clone()
                    for end, size in zip(ends, sizes, strict=True)
                ],
                dim=-2,
            )
        with self.timed("targets"):
            how_it_ends = np.array([length, segment.terminated])
            targets = self._sweep(replay, located, next_values, how_it_ends)[..., :length].clone()
        if self._draws_since_line % DIAGNOSED_DRAWS == 0:
            batch = replay.batch(self._staging.upload(located[:length]))
            values = next_values[..., :length, :]
            self._draw_averages.add(*self.diagnose(batch, values, targets))
        self._draws_since_line += 1
        return targets

    def _next_values(self, replay: EpisodicReplay, located: Tensor) -> Tensor:
        """The target network's values (B, A) of the next states at these places."""
        return self.learner.target_values(replay.batch(located).next_states)

    def _backward(
        self, replay: EpisodicReplay, located: Tensor, next_values: Tensor, how_it_ends: Tensor
    ) -> Tensor:
        """Targets (T,) of a padded segment; how_it_ends: its length, and terminated."""
        return self.sweep(replay.batch(located), next_values, *how_it_ends)

    def metrics(self) -> dict[str, float]:
        self._draws_since_line = 0
        return {
            **super().metrics(),
            **self._draw_averages.take(),
            "replay/forfeited_draws": float(self.forfeited_draws),
        }

    def state_dict(self) -> dict[str, Any]:
        draws = [draw for draw in self._draws if draw is not None]
        return {
            **super().state_dict(),
            "forfeited_draws": self.forfeited_draws,
            "draws_since_line": self._draws_since_line,
            "draw_averages": self._draw_averages.state_dict(),
            "draws": {
                "lane": [lane for lane, draw in enumerate(self._draws) if draw is not None],
                "stream": [draw.stream for draw in draws],
                "start": [draw.start for draw in draws],
                "left": [draw.left for draw in draws],
                "targets": {str(i): draw.targets for i, draw in enumerate(draws)},
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.forfeited_draws = state["forfeited_draws"]
        self._draws_since_line = state["draws_since_line"]
        self._draw_averages.load_state_dict(state["draw_averages"])
        self._draws = [None] * self.config.mix_segments
        draws = state["draws"]
        for i, lane in enumerate(draws["lane"]):
            self._draws[lane] = Draw(
                draws["stream"][i],
                draws["start"][i],
                draws["targets"][str(i)].to(self.learner.device),
                draws["left"][i],
            )
