"""The commands that are killed and fail: small ones of every agent, procedure and study."""

import csv
import json
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from agents import AGENTS
from agents.distillation.experimental import synthetic
from agents.distillation.experimental.generators import KegNetConfig
from ebu.errors import EbuError
from ebu.run.checkpoint import NAME, load_latest
from ebu.run.checkpoint_manifest import MANIFEST
from ebu.run.directory import EVALUATIONS, METRICS
from tests.distillations import FLAGS, GREY, NUMBERS, train, train_teacher, without_seconds
from tests.faulty_calls import Fault, run
from tests.made_up import same

COLOUR = "tests.envs.tiny:TinyColour-v0"
SMALL = (
    "--num-envs 2 --replay-capacity 300 --learning-starts 50 --updates-per-step 0.1 --threads 1 "
    "--device cpu --log-every-frames 100 --eval-every-frames 150 --eval-episodes 2"
)
OFTEN = "--checkpoint-minutes 0.002"
SELDOM = "--checkpoint-minutes 1000"
"""Saved at the end alone: the calls of each start are then the same."""
ATARI = "--frames 1600 --game pong --network 2-2-2/4 --eval-every-frames 0"
FEW = "--seeds 1 --baselines"
EXPORTED = ["--states", "90", "--games", "2", "--num-envs", "3", "--threads", "1", "--trust-env"]


class Setting(NamedTuple):
    """A command, the runs it distils or exports, and its flags; {out} is its directory."""

    command: str
    flags: str
    teachers: tuple[str, ...] = ()

    def words(self, out: Path, teachers: Path) -> list[str]:
        """Its command line."""
        flags = self.flags.format(out=out).split()
        if self.command == "train":
            return ["--run-dir", str(out), *SMALL.split(), *flags]
        if self.command == "study":
            return ["--out", str(out), *flags]
        runs = [str(teachers / name) for name in self.teachers]
        if self.command == "export":
            return [*runs, "--out", str(out), *EXPORTED, *flags]
        return [*runs, "--out", str(out), *FLAGS, *flags]


def _train(flags: str) -> Setting:
    return Setting("train", flags)


def _study(flags: str, passed_on: str) -> Setting:
    return Setting("study", f"--games {NUMBERS} --episodes 2 {flags} -- {SMALL} {passed_on}")


def _distill(flags: str, *teachers: str) -> Setting:
    return Setting("distill", flags, teachers or ("one",))


SETTINGS = {
    **{agent: _train(f"{OFTEN} --frames 240 --game {NUMBERS} --agent {agent}") for agent in AGENTS},
    "paper": _train(f"{OFTEN} {ATARI} --protocol paper"),
    "machado": _train(f"{OFTEN} {ATARI} --protocol machado"),
    "CartPole-v1": _train(f"{OFTEN} --frames 400 --game CartPole-v1"),
    "--distill": _train(f"{OFTEN} --frames 300 --game {GREY} --network 3-3-3/6 --distill 2-2-2/4"),
    "distill": _distill(""),
    "baselines": _distill("--seeds 1 --baselines hard kl+hint=0.1 regression"),
    "replay": _distill(f"{FEW} --states-from replay"),
    "noise": _distill(f"{FEW} --states-from noise"),
    "mixed": _distill(f"{FEW} --states-from mixed"),
    "kegnet": _distill(f"{FEW} --states-from kegnet"),
    "adversarial": _distill(f"{FEW} --adversarial 0.1"),
    "factorised": _distill(f"{FEW} --students teacher@half"),
    "mutual": _distill(f"{FEW} --mutual"),
    "generations": _distill(f"{FEW} --generations 2"),
    "refined": _distill(f"{FEW} --refine-labels"),
    "unshifted": _distill("--baselines kl --refine-labels --unshifted-labels --generations 2"),
    "hard": _distill("--seeds 1 --loss hard --baselines kl"),
    "exported": _distill(f"{FEW} --export"),
    "int8": _distill(f"{FEW} --int8-aware"),
    "an export": Setting("export", "", ("one",)),
    "from scratch": _distill(f"{FEW} --from-scratch 100"),
    "ensemble": _distill(FEW, "one", "two"),
    "learners": _distill(f"{FEW} --all-learners", "learners"),
    "several games": _distill(f"{FEW} --states 240", "one", "colour"),
    "study": _study("--agents ebu dqn --frames 200 --jobs 2", OFTEN),
    "results": _study("--agents ebu --frames 200 --results {out}/results", OFTEN),
}
"""Killed at random."""
SAVED_SELDOM = {
    "a training": _train(f"{SELDOM} --frames 160 --game {NUMBERS}"),
    "a distillation": _distill(f"{FEW} --updates 2 --rounds 1 {SELDOM}"),
    "a study": _study("--agents ebu --frames 60", f"{SELDOM} --eval-every-frames 0"),
}
"""Of these each call fails, and each file is damaged."""
ALL = SETTINGS | SAVED_SELDOM


def train_teachers(root: Path) -> None:
    """Make the runs that are distilled."""
    pictures = f"--game {GREY} --network 3-3-3/6 --frames 200"
    train_teacher(root / "one")
    train(root / "two", f"{pictures} --seed 1")
    train(root / "colour", f"{pictures} --game {COLOUR}")
    train(root / "learners", f"{pictures} --agent adaptive_ebu --learners 2")


def shrink() -> None:
    """Make small what has no flag."""
    KegNetConfig.__init__.__defaults__ = (2, 3, 4, 1e-2, 4, 4, 4, 1.0, 1.0)
    synthetic.MIXED_FROM = 60  # type: ignore[attr-defined]


class Prepared:
    """A setting in a directory of its own; what it leaves when nothing happens, by which calls."""

    def __init__(self, name: str, root: Path) -> None:
        """`root`: of all settings; holds the teachers, see `train_teachers`."""
        self.name = name
        self.directory = root / name.replace(" ", "_")
        self.directory.mkdir()
        self._setting, self._teachers = ALL[name], root / "teachers"
        self.log = self.directory / "log"
        reference = self.directory / "reference"
        code, self.calls = self.start(reference)
        assert code == 0, self.said()
        self.left = left_by(reference)

    def start(self, out: Path, fault: Fault | None = None) -> tuple[int, list[str]]:
        """Run it in this directory, with a fault: its exit code and its calls."""
        words = self._setting.words(out, self._teachers)
        return run(self._setting.command, words, self.log, fault or Fault(out))

    def half(self) -> Path:
        """A directory of it that was killed after three quarters of its calls; made once."""
        out = self.directory / "half"
        if not out.exists():
            code, _ = self.start(out, Fault(out, at=len(self.calls) * 3 // 4))
            # Of a study the process that plays may be the one that is killed.
            assert code in (-signal.SIGKILL, 1), self.said()
        return out

    def said(self) -> str:
        """What was printed so far, and forget it."""
        text = self.log.read_text(errors="replace")
        self.log.write_bytes(b"")
        return text

    def differences(self, out: Path) -> list[str]:
        """What was left otherwise than it should be."""
        left = left_by(out)
        names = sorted(left.keys() | self.left.keys())
        return [name for name in names if not same(left.get(name), self.left.get(name))]


@cache
def prepared(name: str, root: Path) -> Prepared:
    """A setting, made once."""
    return Prepared(name, root)


RECORDS = ("result.json", "report.json", "teacher.json", "evaluation.json")


def left_by(out: Path) -> dict[str, Any]:
    """What a command has computed: records without wall times, logs, the newest checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name in RECORDS:
            found[name] = without_seconds(json.loads(path.read_text()))
        elif path.name in (METRICS, EVALUATIONS):
            found[name] = path.read_bytes()
        elif path.name == "results.csv":
            with path.open() as table:
                found[name] = [{**row, "train_seconds": ""} for row in csv.DictReader(table)]
        elif path.is_dir() and "training" not in path.parts and (kind := _kind_in(path)):
            try:
                checkpoint = load_latest(path, kind=kind)
            except EbuError as error:
                found[name] = str(error)
                continue
            assert checkpoint is not None
            found[name] = {"name": checkpoint.name, **checkpoint.state}
            frames = checkpoint.directory / "frames.zst"
            if frames.exists():
                found[name]["frames.zst"] = frames.read_bytes()
    return found


def _kind_in(directory: Path) -> str | None:
    """The kind of the checkpoints in a directory; None without any."""
    matches = [
        NAME.fullmatch(each.name) for each in directory.iterdir() if (each / MANIFEST).exists()
    ]
    return next((match[match.lastindex or 0] for match in matches if match), None)


def weights_among(names: Sequence[str]) -> list[str]:
    """Of what `left_by` names, the checkpoints."""
    return [name for name in names if "." not in Path(name).name]
