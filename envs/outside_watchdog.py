"""End a process that hangs in native code and lets no thread of Python run, from outside.

`envs.watchdog` starts this file as a process of its own, on the standard library alone.
"""

import os
import select
import signal
import struct
import sys

NUMBERS = struct.Struct("5q")
MOST_NAME_BYTES = 400
PAGE_BYTES = NUMBERS.size + MOST_NAME_BYTES
"""What both processes see: the number of the current wait, 0 for none; the seconds that it may take
longer than others; environment, game and step, see `where`; and the name of what is waited for."""


def watch(page: int, parent: int, seconds: int) -> None:
    """Look at the page once a second until the parent ends, or has waited too long.

    | argument | meaning |
    | --- | --- |
    | page | descriptor of the page; standard input is a pipe that ends with the parent |
    | seconds | how often the same wait may be seen, if it may not take longer than others |
    """
    seen, unchanged = 0, 0
    while not select.select([0], [], [], 1.0)[0] and os.getppid() == parent:
        shared = os.pread(page, PAGE_BYTES, 0)
        waiting, more, *place = NUMBERS.unpack_from(shared)
        if not waiting or waiting != seen:
            seen, unchanged = waiting, 0
        elif not _is_suspended(parent):
            unchanged += 1
        if unchanged >= seconds + more:
            name = shared[NUMBERS.size :].rstrip(b"\0").decode(errors="replace")
            line = (
                f"error: {where(name, *place)} has not answered for {seconds + more} seconds, nor "
                "let any other code run, so nothing more is saved: run the same command again to "
                "resume from the last checkpoint, train.py with --fresh-games to play other games "
                "from there\n"
            )
            os.write(2, line.encode())
            os.kill(parent, signal.SIGKILL)
            return


def where(name: str, environment: int, game: int, step: int) -> str:
    """The call that is waited for.

    | argument | meaning |
    | --- | --- |
    | environment | its index; -1: unknown |
    | game | of this environment, counted from 1; 0: it is being made; -1: unknown |
    | step | 0: the reset; -1: unknown |
    """
    text = name if environment < 0 else f"environment {environment} of {name}"
    if game == 0:
        return f"{text}, which is being made,"
    if step >= 0:
        text += f", step {step}" if step else ", the reset"
    return f"{text} of its game {game}" if game > 0 else text


def _is_suspended(process: int) -> bool:
    """Whether it is stopped, by Ctrl-Z or by a debugger."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


if __name__ == "__main__":
    # Those of a scheduler go to every process; this one ends with its parent.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    watch(*map(int, sys.argv[1:]))
