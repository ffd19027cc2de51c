"""Notice environments that do not answer: interrupt the call, or end the process."""

import atexit
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType

from envs import outside_watchdog
from envs.faults import EnvironmentHang

PATIENCE_SECONDS = 50
"""A step takes milliseconds, a reset seconds; a faulty environment never returns."""
GRACE_SECONDS = 5
"""After the interruption: Python code has answered by then, native code never will."""
LOCKED_SECONDS = PATIENCE_SECONDS + GRACE_SECONDS + 15
"""Native code that holds Python's lock keeps the watching thread from all of this."""
# No other program sends this signal, and no handler that stops a run uses it.
_SIGNAL = getattr(signal, "SIGVTALRM", None)


class Hung(BaseException):
    """Raised inside a call that took too long; no `except Exception` on its way stops it."""


class _Outside:
    """The process that notices what no thread can: native code that holds Python's lock.

    One for all watchdogs, started with the first of them, and only on Linux.

    | attribute | meaning |
    | --- | --- |
    | numbers | (5,) int64, shared with that process: see `outside_watchdog.PAGE_BYTES` |
    """

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Share nothing, as in a forked child: the process watches the parent."""
        self._share(memoryview(bytearray(outside_watchdog.PAGE_BYTES)))
        if self._process is not None and self._process.returncode is None:
            self._process.returncode = 0  # otherwise Python warns that it still runs
        self._process = None

    def start(self) -> None:
        """Start the process, if there is none; where it cannot be started, there is none."""
        if self._process is not None or not hasattr(os, "memfd_create") or not sys.executable:
            return
        with contextlib.suppress(OSError):
            page = os.memfd_create("ebu-watchdog")
            try:
                os.ftruncate(page, outside_watchdog.PAGE_BYTES)
                shared = memoryview(mmap.mmap(page, outside_watchdog.PAGE_BYTES))
                words = (outside_watchdog.__file__, page, os.getpid(), LOCKED_SECONDS)
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", *map(str, words)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(page,),
                    start_new_session=True,
                )
            finally:
                os.close(page)
            self._share(shared)

    def _share(self, page: memoryview) -> None:
        size = outside_watchdog.NUMBERS.size
        self.numbers, self._text = page[:size].cast("q"), page[size:]
        self._name: str | None = None

    def name(self, name: str) -> None:
        """Say what is waited for, if something else was before."""
        if self._name is not name:
            self._name = name
            text = name.encode(errors="replace")[: len(self._text)]
            self._text[:] = text.ljust(len(self._text), b"\0")

    def stop(self) -> None:
        """End the process with this one."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self.forget()


_outside = _Outside()
atexit.register(_outside.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_outside.forget)


class Watchdog:
    """Context manager that interrupts its body when it takes longer than `seconds`.

    | attribute | meaning |
    | --- | --- |
    | describe | says what is waited for, when that hangs |
    | seconds, more | how long a wait may take, and how much longer the next ones |
    | name, place | what is waited for, as told to the other process: see `outside_watchdog.where` |

    A body in Python is left, and EnvironmentHang raised. Native code cannot be interrupted: a few
    seconds later the process ends, after `last_words`, which the watching thread asks for. Native
    code that keeps all threads of Python from running is ended from another process, unsaved.

    Entering and leaving only write numbers, so a step costs nothing measurable. A daemon thread
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
        self.more = 0
        self.name = describe()
        self.place = (-1, -1, -1)
        self._stopped = threading.Event()
        _outside.start()
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
        _outside.name(self.name)
        numbers = _outside.numbers
        numbers[1] = self.more
        numbers[2], numbers[3], numbers[4] = self.place
        numbers[0] = self._waits

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting = _outside.numbers[0] = 0
        if kind is Hung:
            raise EnvironmentHang(self.what()) from None

    def stop(self) -> None:
        """Stop the watching thread."""
        self._stopped.set()

    def what(self) -> str:
        """One line on the call that hangs."""
        return f"{self.describe()} has not answered for {self.seconds + self.more} seconds"

    def _watch(self) -> None:
        seen, unchanged = 0, 0
        while not self._stopped.wait(1.0):
            waiting = self._waiting
            unchanged = unchanged + 1 if waiting and waiting == seen else 0
            seen = waiting
            seconds = self.seconds + self.more
            if unchanged == seconds and self._interruptible:
                self._overdue = waiting
                _overdue.append(self)
                assert _SIGNAL is not None
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            elif unchanged >= seconds + GRACE_SECONDS:
                self._end()

    def _end(self) -> None:
        # Saving what can be saved may take longer.
        _outside.numbers[0] = 0
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
