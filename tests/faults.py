"""Kills and failing system calls in bulk: what is started again ends as if nothing had happened.

    python -m tests.faults --cases 400 --minutes 90

A case runs a command in children forked from this process, which has imported everything. Each of
its first children is killed at a random call that touches files, or has such a call fail, once or
from then on; the last one is left alone. Its result must be that of a run that was never touched.
"""

import argparse
import builtins
import contextlib
import errno
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import AGENTS
from ebu.commands import distill, trainer  # noqa: F401 (loaded before any fork)
from ebu.commands.train import main as train
from ebu.run.checkpoint import load_latest
from ebu.run.cli import run_command
from tests.distillations import FLAGS, GREY, NUMBERS, contents, train_teacher
from tests.made_up import same

SMALL = (
    "--num-envs 2 --replay-capacity 300 --learning-starts 50 --updates-per-step 0.1 --threads 1 "
    "--device cpu --log-every-frames 100 --eval-every-frames 150 --eval-episodes 2 "
    "--checkpoint-minutes 0.002"
)
ATARI = f"{SMALL} --frames 1600 --game pong --network 2-2-2/4 --eval-every-frames 0"
TRAININGS = {
    **{agent: f"{SMALL} --frames 240 --game {NUMBERS} --agent {agent}" for agent in AGENTS},
    "paper": f"{ATARI} --protocol paper",
    "machado": f"{ATARI} --protocol machado",
    "CartPole-v1": f"{SMALL} --frames 400 --game CartPole-v1",
    "--distill": f"{SMALL} --frames 300 --game {GREY} --network 3-3-3/6 --distill 2-2-2/4",
}
DISTILLATIONS = {
    "distill": "",
    "baselines": "--baselines hard kl+hint=0.1",
    "mutual": "--mutual",
    "generations": "--generations 2",
}
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)
CALLS = ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "open"), (os, "write"), (io, "open"))


class Fault:
    """What happens at a call that touches the files of a directory: nothing, a kill, an error."""

    def __init__(self, root: Path, at: int, number: int | None, lasting: bool) -> None:
        """`number`: of the error; None kills. `at`: the call, counted from 1; 0 for none."""
        self.calls = 0
        self._root, self._at, self._number, self._lasting = str(root), at, number, lasting

    def install(self) -> None:
        for owner, name in CALLS:
            setattr(owner, name, self._faulty(getattr(owner, name)))
        builtins.open = io.open

    def _faulty(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            where = args[0]
            if isinstance(where, int):
                with contextlib.suppress(OSError):
                    where = os.readlink(f"/proc/self/fd/{where}")
            if str(where).startswith(self._root):
                self.calls += 1
                if self.calls == self._at or (self._lasting and 0 < self._at < self.calls):
                    if self._number is None:
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise OSError(self._number, os.strerror(self._number or 0))
            return original(*args, **kwargs)

        return call


def run(main: Callable[[], int], args: str, log: Path, fault: Fault) -> tuple[int, int]:
    """Run a command in a forked child: its exit code, negative for a signal, and its calls."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            sys.argv = ["command", *args.split()]
            fault.install()
            run_command(main)
        except SystemExit as exit_:
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(writing, str(fault.calls).encode())
            os._exit(int(exit_.code or 0))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(70)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        calls = int(pipe.read() or 0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), calls


class Setting:
    """A command, what it leaves when nothing happens, and in how many calls."""

    def __init__(self, name: str, root: Path, teacher: Path) -> None:
        self.name, self.root = name, root / name.replace("/", "_")
        self.root.mkdir()
        self._teacher = teacher
        self.reference = self.root / "reference"
        code, self.calls = self.start(self.reference, 0, None)
        assert code == 0, (self.root / "log").read_text()

    def start(
        self, out: Path, at: int, number: int | None, lasting: bool = False
    ) -> tuple[int, int]:
        """Run it in this directory, with a fault at this call."""
        fault = Fault(out, at, number, lasting)
        if self.name in TRAININGS:
            args = f"{TRAININGS[self.name]} --run-dir {out}"
            return run(train, args, self.root / "log", fault)
        args = f"{self._teacher} --out {out} {' '.join(FLAGS)} {DISTILLATIONS[self.name]}"
        return run(distill.main, args, self.root / "log", fault)

    def differs(self, out: Path) -> str:
        """How what is there differs from the reference; empty where it does not."""
        if self.name in DISTILLATIONS:
            one, other = contents(self.reference), contents(out)
            names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
            return ", ".join(sorted(name for name in names if "config.json" not in name))
        for log in ("metrics.jsonl", "evaluations.jsonl"):
            if (self.reference / log).read_bytes() != (out / log).read_bytes():
                return log
        for folder in ("checkpoints", "best"):
            pair = [load_latest(each / folder) for each in (self.reference, out)]
            if not same(*(checkpoint and checkpoint.state for checkpoint in pair)):
                return folder
        return ""

    def case(self, number: int, seed: int) -> tuple[Counter[str], str]:
        """One case; what happened in it, and what is wrong, if anything is."""
        rng = random.Random(f"{seed}-{number}")
        out, happened = self.root / f"case{number}", Counter[str]()
        log = self.root / "log"
        log.write_bytes(b"")
        for _ in range(rng.choice((1, 1, 2, 3))):
            number_or_kill = rng.choice((None, None, *ERRNOS))
            lasting = number_or_kill is not None and rng.random() < 0.5
            at = rng.randrange(1, self.calls + 1)
            code, _ = self.start(out, at, number_or_kill, lasting)
            if code == -signal.SIGKILL:
                happened["kills"] += 1
            elif code in (0, 1, 2):
                happened["errors" if number_or_kill else "ends before the kill"] += 1
            else:
                return happened, f"exit code {code}"
        code, _ = self.start(out, 0, None)
        said = log.read_text(errors="replace")
        if code != 0 or "Traceback" in said:
            return happened, f"exit code {code}: {said[-1500:]}"
        wrong = self.differs(out)
        shutil.rmtree(out)
        return happened, wrong and f"differs in {wrong}"


def faults(
    names: list[str], numbers: range, seed: int, until: float, root: Path
) -> tuple[Counter[str], list[str]]:
    """Try cases over these settings in turn; what happened, and what was wrong."""
    teacher = root / "teacher"
    if set(names) & DISTILLATIONS.keys():
        train_teacher(teacher)
    settings: dict[str, Setting] = {}
    happened, wrong = Counter[str](), []
    for number in numbers:
        if time.monotonic() > until:
            break
        name = names[number % len(names)]
        if name not in settings:
            settings[name] = Setting(name, root, teacher)
        met, how = settings[name].case(number, seed)
        happened += met + Counter(cases=1)
        if how:
            wrong.append(f"case {number}, {name}: {how}")
    return happened, wrong


def main() -> None:
    """Try cases until all are done or the time is over, and print the counts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=400)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=90.0)
    options.add_argument("--only", nargs="+", default=[*TRAININGS, *DISTILLATIONS])
    given = options.parse_args()
    began = time.monotonic()
    numbers = range(given.first, given.first + given.cases)
    with tempfile.TemporaryDirectory() as root:
        until = began + 60 * given.minutes
        happened, wrong = faults(given.only, numbers, given.seed, until, Path(root))
    print("\n".join(wrong))
    print(f"{dict(happened)}: {len(wrong)} wrong, {time.monotonic() - began:,.0f} s")
    if happened["cases"] < given.cases:
        sys.exit("not all was tried: give it more --minutes")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
