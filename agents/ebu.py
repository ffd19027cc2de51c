"""Episodic Backward Update with a constant diffusion factor (Lee et al. 2019, Algorithm 2)."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent, AgentConfig
from agents.learner import Learner
from ebu.replay import EpisodicReplay
from ebu.segments import Segment
from ebu.targets import backward_targets, one_step_targets, propagated_share

TARGET_PASS_STATES = 32
"""States in one forward pass of the target network. Fixed, the last pass padded, because a
network's values of a state differ in the last bits between batch sizes."""


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


class Ebu(Agent):
    """Whole segments drawn uniformly, trained from their end to their start.

    With `mix_segments` 1 a minibatch holds consecutive transitions of one segment; the short one
    at a segment's start is filled from the tail of a second draw, which then is let go, as in the
    original. With M > 1 it holds batch_size / M consecutive transitions of each of M segments, and
    a segment that is used up is replaced by the next draw.
    """

    def __init__(self, config: AgentConfig, learner: Learner, rng: np.random.Generator) -> None:
        super().__init__(config, learner, rng)
        self.forfeited_draws = 0
        """Draws given up because their frames were about to be overwritten."""
        self._draws: list[Draw | None] = [None] * config.mix_segments

    def learn_once(self, replay: EpisodicReplay) -> None:
        share = self.config.batch_size // self.config.mix_segments
        pieces = [
            piece for lane in range(len(self._draws)) for piece in self._take(replay, lane, share)
        ]
        steps, streams, targets = (list(column) for column in zip(*pieces, strict=True))
        self._update(
            replay,
            np.concatenate(steps),
            np.concatenate(streams),
            torch.cat(targets),
        )

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
            targets = draw.targets[draw.left : draw.left + size]
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
        started = time.perf_counter()
        targets = self._targets(replay, segment)
        self._time_targets(started)
        return Draw(segment.stream, segment.start, targets, segment.length)

    def _targets(self, replay: EpisodicReplay, segment: Segment) -> Tensor:
        steps = np.arange(segment.start, segment.start + segment.length)
        streams = np.full(segment.length, segment.stream)
        next_values = self._next_values(replay, steps, streams)
        rewards = self._clipped(replay.rewards(steps, streams))
        actions = replay.actions(steps, streams)
        ended = torch.tensor(segment.terminated, device=rewards.device)
        gamma, beta = self.config.gamma, self.config.beta
        targets = backward_targets(rewards, next_values, actions, ended, gamma=gamma, beta=beta)
        one_step = one_step_targets(
            rewards, next_values, replay.terminated(steps, streams), gamma=gamma
        )
        self._record("q/backward_minus_one_step", (targets - one_step).mean())
        if segment.length > 1:
            share = propagated_share(targets, next_values, actions, beta=beta)
            self._record("q/propagated_share", share)
        return targets

    def _next_values(
        self, replay: EpisodicReplay, steps: np.ndarray, streams: np.ndarray
    ) -> Tensor:
        """The target network's values (T, A) of every next state, in passes of fixed size."""
        length = len(steps)
        padding = (0, -length % TARGET_PASS_STATES)
        steps, streams = (np.pad(index, padding, mode="edge") for index in (steps, streams))
        chunks = [
            self.learner.target_values(
                replay.next_states(
                    steps[at : at + TARGET_PASS_STATES], streams[at : at + TARGET_PASS_STATES]
                )
            )
            for at in range(0, len(steps), TARGET_PASS_STATES)
        ]
        return torch.cat(chunks)[:length]

    def metrics(self) -> dict[str, float]:
        return {**super().metrics(), "replay/forfeited_draws": float(self.forfeited_draws)}

    def state_dict(self) -> dict[str, Any]:
        draws = [draw for draw in self._draws if draw is not None]
        return {
            **super().state_dict(),
            "forfeited_draws": self.forfeited_draws,
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
        self._draws = [None] * self.config.mix_segments
        draws = state["draws"]
        for i, lane in enumerate(draws["lane"]):
            self._draws[lane] = Draw(
                draws["stream"][i],
                draws["start"][i],
                draws["targets"][str(i)].to(self.learner.device),
                draws["left"][i],
            )
