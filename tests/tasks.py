"""Tasks of a study whose commands are a few lines of Python."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from ebu.commands.studying.player import Task

# Says that it is there, waits to be told to end, and says that it has saved; then it has played.
OBEDIENT = """
import pathlib, signal, sys, time
saved = pathlib.Path("NAME.saved")
if saved.exists():
    sys.exit()
def stop(number, frame):
    saved.touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("NAME.started").touch()
time.sleep(600)
"""


def task(root: Path, name: str, train: str, score: str = "") -> Task:
    """A task whose commands are these lines of Python."""
    root.mkdir(exist_ok=True)
    python = (sys.executable, "-S", "-c")
    return Task(root / name, 1_000, (*python, train), (*python, score))


def obedient(root: Path, name: str) -> Task:
    return task(root, name, OBEDIENT.replace("NAME", str(root / name)))


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
