"""Notices that other programs take the cores that the threads of this one share out work to.

PyTorch's threads wait for one another in every layer. Where one has no core, all wait until the
system gives it one, milliseconds later: several threads can then be many times slower than one.
"""

import contextlib
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from ebu.run.progress import say

SECONDS = 20.0
"""Between two looks."""
TOO_MUCH = 0.25
"""Share of the time that threads stand ready without a core, from which it is said."""


def seconds_without_a_core(tasks: Path = Path("/proc/self/task")) -> float:
    """How long the threads of this process have stood ready to run without a core, added up.

    0 on systems that do not say.
    """
    nanoseconds = 0
    for schedstat in tasks.glob("*/schedstat"):
        # A thread that has just ended has no file, or an empty one.
        with contextlib.suppress(OSError, ValueError, IndexError):
            nanoseconds += int(schedstat.read_text().split()[1])
    return nanoseconds / 1e9


def threads_left_automatic(automatic: Collection[str]) -> int:
    """PyTorch's threads; 1 if `threads` is not automatic, since a run keeps what was asked for."""
    return torch.get_num_threads() if "threads" in automatic else 1


@contextlib.contextmanager
def note_busy_cores(threads: int, advice: str, every: float = SECONDS) -> Iterator[None]:
    """Say once, while inside, that other programs take this one's cores, and the advice.

    | argument | meaning |
    | --- | --- |
    | threads | of PyTorch; a single one waits for no other, and nothing is said |
    | advice | how to use one thread |
    | every | seconds between two looks |
    """
    if threads == 1:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        before, waited = time.monotonic(), seconds_without_a_core()
        while not done.wait(every):
            now, total = time.monotonic(), seconds_without_a_core()
            if total - waited > TOO_MUCH * (now - before):
                say(
                    f"warning: other programs use the cores of this one's {threads} threads, which "
                    f"wait for one another: one thread would be faster; {advice}"
                )
                return
            before, waited = now, total

    watcher = threading.Thread(target=watch, name="busy cores", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
