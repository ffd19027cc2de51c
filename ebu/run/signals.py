"""Signals that stop a command: it saves and ends; the third Ctrl-C ends it at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

THIRD = "a third Ctrl-C ends at once and loses what is not saved yet (what was saved before stays)"
"""What a program says that is stopping."""
_ENDING = (signal.SIGINT, signal.SIGTERM)
# A closed terminal, warnings before a time limit of Slurm and submitit, and a limit of processor
# time, which warns every second; missing on Windows. SIGQUIT still ends at once.
_OTHERS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the number of the first signal: SIGINT, SIGTERM or one of `_OTHERS`.

    For the time of this block. The signal is answered at once with a line on standard error. What
    has been set to be ignored, by nohup or the shell's &, stays ignored. A second SIGINT or SIGTERM
    lets what is being saved finish, a third ends the process, even in the middle of a call.
    """
    numbers = [
        number for number in (*_ENDING, *_OTHERS) if signal.getsignal(number) != signal.SIG_IGN
    ]
    came = 0

    def answer(number: int, _: object) -> None:
        nonlocal came
        came += number in _ENDING or not came
        if came == 1:
            _tell(f"stopping: saving; {THIRD}")
            stop(number)
        elif number in _ENDING:
            for each in _ENDING:
                signal.signal(each, signal.SIG_DFL)
            _tell(f"still saving; {THIRD}")

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
