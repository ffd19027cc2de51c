"""Signals that stop a command: it saves and ends; a second Ctrl-C ends it at once."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

SECOND = "a second Ctrl-C ends at once and loses what is not saved yet (earlier saves stay)"
"""What a program says of its stop, where nothing else is said."""
# A closed terminal, warnings before a time limit of Slurm and submitit, and a limit of processor
# time, which warns every second; missing on Windows. SIGQUIT still ends at once.
_STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
_ONE_PRESS = 0.5
"""Seconds in which signals are one request: a parent may pass on what its child got, too."""


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[int], None], second: str = SECOND) -> Iterator[None]:
    """Call `stop` with the number of the first signal, one of `_STOPPING`.

    For the time of this block. The signal is answered at once with a line on standard error, which
    ends with what a `second` Ctrl-C does. What has been set to be ignored, by nohup or the shell's
    &, stays ignored. A SIGINT that comes half a second later or more ends the process; other
    signals let what is being saved finish.
    """
    numbers = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    first: float | None = None

    def answer(number: int, _: object) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            _tell(f"stopping: saving; {second}")
            stop(number)
        elif number == signal.SIGINT and time.monotonic() - first >= _ONE_PRESS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, answer) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_on_interrupt() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`; until then it ends the process."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _tell(line: str) -> None:
    # Past the buffers of sys.stderr, which may be in the middle of a line.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.write(sys.stderr.fileno(), f"\n{line}\n".encode())
