"""What a training logs of its games, values, agent and replay memory, over all ranks."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ebu.game_statistics import GameStatistics
from ebu.interfaces import VectorStep
from ebu.run.logs import Monitor
from ebu.run.ranks import Ranks
from ebu.schedules import EARLY_LINES, Schedule
from ebu.stopwatch import SpeedMark
from ebu.value_probes import ValueProbes

SUMMED = frozenset(
    f"replay/{name}"
    for name in (
        *("age_agent_steps", "bytes", "cuts", "forfeited_draws", "segment_transitions"),
        *("segments", "transitions"),
    )
)
"""Metrics that are the sum over the ranks; all others that ranks have of their own are the mean."""


class TrainingLog:
    """Collects what happens between two lines of metrics, and writes them.

    | argument | meaning |
    | --- | --- |
    | monitor | the run's logs; None on ranks that leave them to the first |
    | every_frames | frames between two lines |
    | num_envs | environments of this rank |
    | gamma, clip_rewards | of the logged value estimates: see `ValueProbes` |
    """

    def __init__(
        self,
        monitor: Monitor | None,
        every_frames: int,
        *,
        num_envs: int,
        gamma: float,
        clip_rewards: bool,
        ranks: Ranks,
    ) -> None:
        self._monitor = monitor
        self._ranks = ranks
        self.games = GameStatistics(num_envs)
        self.probes = ValueProbes(num_envs, gamma=gamma, clip_rewards=clip_rewards)
        self.schedule = Schedule(every_frames, EARLY_LINES)
        self.speed_mark: SpeedMark | None = None
        """Where the speeds of the next line are measured from; None before anything is played."""

    def begin_probes(self, actions: np.ndarray, values: Tensor) -> None:
        """Remember what these actions (N,) were worth, by values (N, A), where no probe is open."""
        free = self.probes.free()
        if free.any():
            rows, taken = np.flatnonzero(free), actions[free]
            predicted = values[torch.from_numpy(rows), torch.from_numpy(taken)]
            self.probes.begin(free, predicted.cpu().numpy())

    def add(self, step: VectorStep, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Count one step of every environment; where segments end, (N,) bool each."""
        self.games.add(step)
        self.probes.add(step, terminated, truncated)

    def recent_return(self) -> float | None:
        """Mean return of the last games of this rank; None before one has ended."""
        return float(np.mean(self.games.recent)) if self.games.recent else None

    def write(
        self,
        now: SpeedMark,
        frames_per_step: int,
        counts: Mapping[str, float],
        own: Mapping[str, float],
    ) -> None:
        """Write a line: metrics of the games, those that all ranks share, and each rank's own."""
        metrics = self.games.metrics(frames_per_step, self._ranks)
        metrics |= counts
        metrics |= self.probes.metrics(self._ranks)
        metrics |= self._combine(own)
        if self._monitor is not None:
            self._monitor.scalars(now.frames, metrics)
            if self.speed_mark is not None:
                self._monitor.draw(now.frames, self.speed_mark.speeds_until(now))
        self.speed_mark = now
        self.schedule.done(now.frames)

    def _combine(self, own: Mapping[str, float]) -> dict[str, float]:
        """One value for each metric that a rank has, over those that have it."""
        if self._ranks.is_single:
            return dict(own)
        of_ranks = self._ranks.gather(dict(own))
        combined: dict[str, float] = {}
        for name in dict.fromkeys(name for metrics in of_ranks for name in metrics):
            values = [metrics[name] for metrics in of_ranks if name in metrics]
            combined[name] = sum(values) if name in SUMMED else sum(values) / len(values)
        return combined
