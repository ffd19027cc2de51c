"""Runs distill.py again and again, each time killed with SIGKILL a few durable writes later.

    python -m tests.killed_distillation STEP -- FLAGS OF distill.py

Each start is killed before its STEP-th call of fsync, until one comes to its end. Prints how many
were killed. All start as forks of this process, which has imported everything and computed nothing.
"""

import os
import signal
import sys
from typing import Any

import ebu.commands.distilling.run  # noqa: F401
from ebu.commands import distill
from ebu.run.cli import run_command


def killed(step: int) -> bool:
    """Start it once; whether it was killed. Any other end than success ends this process too."""
    child = os.fork()
    if child == 0:
        real, left = os.fsync, step

        def fsync(fd: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(fd)

        os.fsync = fsync
        run_command(distill.main)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        sys.exit(code)
    return code != 0


if __name__ == "__main__":
    step = int(sys.argv[1])
    sys.argv = ["distill.py", *sys.argv[3:]]
    kills = 0
    while killed(step):
        kills += 1
    print(f"killed {kills} times")
