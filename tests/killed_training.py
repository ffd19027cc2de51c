"""Runs train.py in this process and kills the process with SIGKILL at a chosen moment.

    python -m tests.killed_training MOMENT -- FLAGS OF train.py

MOMENT is one of

    step:N          before step number N of this process
    writing:N       in the middle of writing the frames of checkpoint number N of this process
    unpublished:N   when everything of checkpoint number N is written but its name
    saved:N         right after checkpoint number N is complete
    never

Checkpoints come by steps and not by the clock, so that a moment is the same one on every machine:
--checkpoint-minutes says after how many vector steps.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import ebu.run.checkpoint
from ebu.commands import train
from ebu.replay import EpisodicReplay
from ebu.run.cli import run_command
from ebu.training import Trainer
from ebu.training_checkpoints import TrainingCheckpoints


def count_steps_for_minutes() -> None:
    """Let `TrainingCheckpoints.minutes` be the vector steps since the last checkpoint."""
    checkpoints: Any = TrainingCheckpoints
    trainer: Any = Trainer
    played = 0
    step = trainer._step

    def start_clock(_: TrainingCheckpoints) -> None:
        nonlocal played
        played = 0

    def counted(self: Trainer) -> None:
        nonlocal played
        played += 1
        step(self)

    checkpoints.minutes = property(lambda _: played)
    checkpoints.start_clock = start_clock
    trainer._step = counted


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    what, _, number = moment.partition(":")
    seen = {"step": 0, "save": 0}

    def patch(owner: Any, name: str, counter: str, before: bool, half: bool = False) -> None:
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            seen[counter] += 1
            last = seen[counter] == int(number)
            if last and before:
                kill()
            result = original(*args, **kwargs)
            if last and half:
                data = Path(args[1]) / "frames.zst"
                os.truncate(data, data.stat().st_size // 2)
            if last and not before:
                kill()
            return result

        setattr(owner, name, patched)

    if what == "step":
        patch(Trainer, "_step", "step", before=True)
    elif what == "writing":
        patch(EpisodicReplay, "write_frames", "save", before=False, half=True)
    elif what == "unpublished":
        patch(ebu.run.checkpoint, "_publish", "save", before=True)
    elif what == "saved":
        patch(Trainer, "save", "save", before=False)
    elif what != "never":
        raise SystemExit(f"unknown moment {moment}")


if __name__ == "__main__":
    count_steps_for_minutes()
    arm(sys.argv[1])
    sys.argv = ["train.py", *sys.argv[3:]]
    run_command(train.main)
