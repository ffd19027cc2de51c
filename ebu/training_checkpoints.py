"""Checkpoints of a training: of all ranks at once, and of finite updates alone."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebu.errors import EbuError
from ebu.interfaces import Distiller, LearningAgent
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import Checkpoint, save_checkpoint
from ebu.run.directory import CHECKPOINTS
from ebu.run.logs import Monitor
from ebu.run.ranks import Ranks

BEST = "best"
FRESH_GAMES = "fresh_games"
"""Directory of the checkpoint that is written when an environment fails."""


class TrainingCheckpoints:
    """Writes the checkpoints of a run directory.

    | attribute | meaning |
    | --- | --- |
    | last | the newest one; None before the first |
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        agent: LearningAgent,
        replay: EpisodicReplay,
        distiller: Distiller | None,
        monitor: Monitor | None,
        identity: Mapping[str, Any] | None,
        ranks: Ranks,
    ) -> None:
        self.last: Path | None = None
        self._run_dir = run_dir
        self._agent = agent
        self._replay = replay
        self._distiller = distiller
        self._monitor = monitor
        self._identity = identity
        self._ranks = ranks
        self.start_clock()

    def start_clock(self) -> None:
        """Measure `minutes` from now on."""
        self._saved_at = time.monotonic()

    @property
    def minutes(self) -> float:
        """Minutes since the last one was written, or `start_clock`."""
        return (time.monotonic() - self._saved_at) / 60

    def save(
        self, frames: int, state: dict[str, Any], directory: str = CHECKPOINTS, *, keep: int = 2
    ) -> Path:
        """Write a checkpoint of every rank, its replay memory included."""
        self.check_finite(frames)
        saved = save_checkpoint(
            self._run_dir / directory,
            _name(frames),
            state,
            writers=[self._replay.write_frames],
            logs=self.sync_logs(),
            run=self._identity,
            keep=keep,
            ranks=self._ranks,
        )
        if self._distiller is not None:
            self._distiller.save(frames)
        self.last = saved
        self.start_clock()
        return saved

    def save_best(self, frames: int) -> None:
        """Write the agent, which the ranks have in common, as the best evaluated."""
        if self._ranks.is_first:
            state = {"agent": self._agent.state_dict(), "frames": frames}
            save_checkpoint(self._run_dir / BEST, _name(frames), state, run=self._identity, keep=1)

    def sync_logs(self) -> dict[str, int]:
        """Bring the logs to the disk; their lengths, on ranks that write them."""
        return {} if self._monitor is None else self._monitor.sync()

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Count a checkpoint that was loaded as the last.

        The process may have ended before it had written the students of this checkpoint.
        """
        part = checkpoint.directory
        self.last = part if self._ranks.is_single else part.parent
        if self._distiller is not None:
            self._distiller.save(checkpoint.state["frames"])

    def check_finite(self, frames: int) -> None:
        """Raise `EbuError` if an update was not finite: no log and no checkpoint may hold it."""
        failed = self._agent.first_failed_update()
        failures = self._ranks.join([] if failed is None else [failed])
        kept = "nothing was saved yet" if self.last is None else f"{self.last} is kept"
        if failures:
            with self._ranks.together():
                raise EbuError(
                    f"update {min(failures):,} of {self._run_dir} is not finite, noticed at frame "
                    f"{frames:,}: {kept}; start a new run with a lower --learning-rate"
                )
        student = None if self._distiller is None else self._distiller.first_failed_update()
        if student is not None:
            name, update = student
            raise EbuError(
                f"update {update:,} of the student {name} of {self._run_dir} is not finite, "
                f"noticed at frame {frames:,}: {kept}; start a new run without --distill {name}"
            )


def _name(frames: int) -> str:
    return f"frames-{frames:012d}"
