"""Wall time by parts of a loop, and the speeds of a run between two points."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from torch.autograd import profiler
from torch.profiler import record_function


class Stopwatch:
    """Adds up the wall time of named parts; on a GPU that of launching them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time inside to a part, and name the part in a profile."""
        started = time.perf_counter()
        # Costs as much as all else here, so only where somebody records.
        with record_function(part) if profiler._is_profiler_enabled else nullcontext():
            yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


class SpeedMark(NamedTuple):
    """A point of a run, and the seconds that each stage had taken until then."""

    clock: float
    frames: int
    updates: int
    stages: dict[str, float]

    def speeds_until(self, later: "SpeedMark") -> dict[str, float]:
        """Speeds, and the share of each stage, between this mark and a later one.

        `target_passes` and `targets` are parts of `learning`; `training_frames_per_second` leaves
        evaluations and checkpoints out.
        """
        seconds = later.clock - self.clock
        stages = {name: end - self.stages.get(name, 0.0) for name, end in later.stages.items()}
        paused = stages.get("evaluation", 0.0) + stages.get("checkpoints", 0.0)
        frames = later.frames - self.frames
        return {
            "speed/frames_per_second": frames / seconds,
            "speed/training_frames_per_second": frames / (seconds - paused),
            "speed/updates_per_second": (later.updates - self.updates) / seconds,
            **{f"speed/share_{name}": part / seconds for name, part in stages.items()},
        }
