"""A process that waits for an emulator for ever should say so and end."""

import os
import sys
import threading


class Watchdog:
    """Ends the process when one wait lasts longer than `seconds`.

    The waiting thread only writes a number before and after the wait, so a step costs nothing
    that could be measured. A daemon thread looks once a second whether the number is still the
    same. It counts its own looks and not the clock: a process stopped for an hour (Ctrl-Z, a
    laptop asleep) has not waited for an hour.
    """

    def __init__(self, what: str, seconds: int) -> None:
        self._what = what
        self._seconds = seconds
        self._waits = 0
        self._waiting = 0  # number of the wait going on; 0: none
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name=f"watchdog of {what}", daemon=True).start()

    def __enter__(self) -> None:
        self._waits += 1
        self._waiting = self._waits

    def __exit__(self, *exception: object) -> None:
        self._waiting = 0

    def stop(self) -> None:
        """End the watching thread."""
        self._stopped.set()

    def _watch(self) -> None:
        seen, looks = 0, 0
        while not self._stopped.wait(1.0):
            waiting = self._waiting
            looks = looks + 1 if waiting and waiting == seen else 0
            seen = waiting
            if looks >= self._seconds:
                # The waiting thread is inside native code and no exception can reach it.
                print(
                    f"{self._what} has not answered for {self._seconds} seconds: giving up; "
                    "the same command continues from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
