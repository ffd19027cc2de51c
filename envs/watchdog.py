"""Notice environments that do not answer: interrupt the call, or end the process."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from envs.faults import EnvironmentHang

PATIENCE_SECONDS = 50
"""A step takes milliseconds, a reset seconds; a faulty environment never returns."""
GRACE_SECONDS = 5
"""After the interruption: Python code has answered by then, native code never will."""
# No other program sends this signal, and no handler that stops a run uses it.
_SIGNAL = getattr(signal, "SIGVTALRM", None)


class Hung(BaseException):
    """Raised inside a call that took too long; no `except Exception` on its way stops it."""


class Watchdog:
    """Context manager that interrupts its body when it takes longer than `seconds`.

    `describe` says what is waited for; it is called when that hangs.

    A body in Python is left, and EnvironmentHang raised. Native code cannot be interrupted: a few
    seconds later the process ends, after `last_words`, which the watching thread asks for.

    Entering and leaving only write a number, so a step costs nothing measurable. A daemon thread
    reads the number once a second and counts how often it is unchanged. It counts reads instead of
    clock time, because a process that was suspended for an hour (Ctrl-Z, a laptop asleep) has not
    waited for an hour.
    """

    def __init__(self, describe: Callable[[], str], seconds: int = PATIENCE_SECONDS) -> None:
        self.describe = describe
        self.seconds = seconds
        self._waits = 0
        self._waiting = 0  # number of the current wait; 0: none
        self._overdue = 0  # number of the wait that is to be interrupted
        self._stopped = threading.Event()
        self._interruptible = (
            _SIGNAL is not None and threading.current_thread() is threading.main_thread()
        )
        if self._interruptible:
            assert _SIGNAL is not None
            signal.signal(_SIGNAL, _interrupt)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self._waits += 1
        self._waiting = self._waits

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting = 0
        if kind is Hung:
            raise EnvironmentHang(self.what()) from None

    def stop(self) -> None:
        """Stop the watching thread."""
        self._stopped.set()

    def what(self) -> str:
        """One line on the call that hangs."""
        return f"{self.describe()} has not answered for {self.seconds} seconds"

    def _watch(self) -> None:
        seen, unchanged = 0, 0
        while not self._stopped.wait(1.0):
            waiting = self._waiting
            unchanged = unchanged + 1 if waiting and waiting == seen else 0
            seen = waiting
            if unchanged == self.seconds and self._interruptible:
                self._overdue = waiting
                _overdue.append(self)
                assert _SIGNAL is not None
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            elif unchanged >= self.seconds + GRACE_SECONDS:
                self._end()

    def _end(self) -> None:
        try:
            print(f"error: {last_words(self.what())}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)


_overdue: list[Watchdog] = []


def _resume_later(what: str) -> str:
    return f"{what}; run the same command again to resume from the last checkpoint"


last_words: Callable[[str], str] = _resume_later
"""Saves what can be saved before the process ends; from what hangs to the line to print."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    while _overdue:
        watchdog = _overdue.pop()
        # The call may have returned since the signal was sent.
        if watchdog._waiting and watchdog._waiting == watchdog._overdue:
            raise Hung
