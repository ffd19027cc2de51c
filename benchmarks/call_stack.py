"""Print the project's files on the call stack at the loss of an EBU update.

    python -m benchmarks.call_stack

The way from the command to the loss: each file once, in one block, since the sampler, the target
and the replay memory have returned when the loss is computed.
"""

import inspect
import sys
import tempfile
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from unittest import mock

from torch.nn import functional

from ebu.commands import train
from ebu.run.hints import PROJECT

PACKAGES = ("ebu", "agents", "envs")


class Reached(Exception):
    """The loss was reached: nothing more is computed."""


def stack_at_the_loss() -> list[str]:
    """Frames of this project, outermost first, as "path: function", from a first EBU update."""
    found: list[str] = []

    def note(*_: object, **__: object) -> None:
        for frame in reversed(inspect.stack()):
            path = Path(frame.filename)
            if any(path.is_relative_to(PROJECT / package) for package in PACKAGES):
                found.append(f"{path.relative_to(PROJECT)}: {frame.function}")
        raise Reached

    with tempfile.TemporaryDirectory() as directory:
        flags = f"--game CartPole-v1 --agent ebu --threads 1 --run-dir {directory}/run"
        with (
            mock.patch.object(functional, "huber_loss", note),
            mock.patch.object(sys, "argv", ["train.py", *flags.split()]),
            suppress(Reached),
        ):
            train.main()
    return found


def main() -> None:
    """Print the frames, and the files they lie in."""
    frames = stack_at_the_loss()
    print("\n".join(frames))
    files = [path for path, _ in groupby(frame.partition(":")[0] for frame in frames)]
    print(f"{len(files)} files: {', '.join(files)}")


if __name__ == "__main__":
    main()
