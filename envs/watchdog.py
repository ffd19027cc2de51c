"""Abort the process when an emulator call hangs."""

import os
import sys
import threading


class Watchdog:
    """Context manager that ends the process when its body takes longer than `seconds`.

    Entering and leaving only write a number, so a step costs nothing measurable. A daemon thread
    reads the number once a second and counts how often it is unchanged. It counts reads instead of
    clock time, because a process that was suspended for an hour (Ctrl-Z, a laptop asleep) has not
    waited for an hour.
    """

    def __init__(self, what: str, seconds: int) -> None:
        self._what = what
        self._seconds = seconds
        self._waits = 0
        self._waiting = 0  # number of the current wait; 0: none
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name=f"watchdog of {what}", daemon=True).start()

    def __enter__(self) -> None:
        self._waits += 1
        self._waiting = self._waits

    def __exit__(self, *exception: object) -> None:
        self._waiting = 0

    def stop(self) -> None:
        """Stop the watching thread."""
        self._stopped.set()

    def _watch(self) -> None:
        seen, unchanged = 0, 0
        while not self._stopped.wait(1.0):
            waiting = self._waiting
            unchanged = unchanged + 1 if waiting and waiting == seen else 0
            seen = waiting
            if unchanged >= self._seconds:
                # The waiting thread is inside native code, which no exception can interrupt.
                print(
                    f"{self._what} has not answered for {self._seconds} seconds; run the same "
                    "command again to resume from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
