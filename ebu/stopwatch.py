"""Wall time by parts of a loop, for the speed log and for profiles."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import record_function


class Stopwatch:
    """Adds up the wall time of named parts; on a GPU that of launching them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time inside to a part, and name the part in a profile."""
        started = time.perf_counter()
        with record_function(part):
            yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
