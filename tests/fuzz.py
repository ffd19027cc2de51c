"""Damaged files and command lines in bulk: a clear error or a correct load, nothing else.

    python -m tests.fuzz --inputs 100000 --commands 2000 --minutes 30

Every input is a function of the seed and its number, so a failure is repeated by its number alone.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents import load_agent
from agents.distillation.collect import from_replay
from agents.distillation.dataset import load_states
from agents.distillation.report.rows import Report, compose, read_records
from agents.distillation.settings import DistillConfig
from agents.foreign.flags import PolicyFlags
from agents.foreign.formats import read_policy
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.evaluate_arguments import parse_arguments as parse_evaluate
from ebu.commands.release import ReleaseConfig
from ebu.commands.release import parse_arguments as parse_release
from ebu.commands.report import ReportConfig
from ebu.commands.reporting.runs import find_run_directories, read_runs
from ebu.commands.studying.plan import StudyConfig, plan
from ebu.commands.studying.provenance import provenance_of
from ebu.commands.studying.results import ResultsTable, row
from ebu.commands.train_arguments import Arguments, flags_of_run, parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError
from ebu.run.checkpoint import load_latest
from ebu.run.cli import parse
from ebu.run.directory import RELEASED, identity_of, read_config, write_config
from ebu.run.logs import last_frames
from ebu.run.released import write_weights
from tests.agents.foreign.files import CleanDqn, CleanPpoAtari, clean_rl, sb3
from tests.checkpoints import reseal
from tests.damage import HOW, damage, quick_directory, restore
from tests.distillations import distilled, train_teacher
from tests.run_directories import evaluation

MOST_MEMORY = 1 << 30
"""No input here is worth more."""
RESUMED = 0.2
"""Share of trainings that are resumed of those that could be: it takes as long as ten loads."""
Loader = Callable[[Path], object]


def read_run(run_dir: Path) -> object:
    """What commands read of a run directory."""
    runs, _, _ = read_runs(find_run_directories([run_dir]))
    last_frames(run_dir / "metrics.jsonl")
    return [row(run) for run in runs], provenance_of(run_dir)


def read_checkpoints(run_dir: Path) -> object:
    """Everything that resuming a run reads."""
    return load_latest(run_dir / "checkpoints", run=identity_of(read_config(run_dir)))


def read_replay(run_dir: Path) -> object:
    """The states of its replay memory."""
    num_actions = read_config(run_dir)["environment"].get("num_actions", 1)

    def label(states: Any) -> Any:
        return states.flatten(1).float()[:, :1].expand(-1, num_actions)

    rng = np.random.default_rng(0)
    return from_replay(run_dir, label, num_actions=num_actions, rng=rng, count=8)


def read_table(out: Path) -> None:
    """The results table of the directories in it."""
    ResultsTable(out, out).fill()


def read_report(out: Path) -> Report:
    """The report of a distillation by the default method."""
    return compose(read_records(out, "kl"))


def read_foreign(directory: Path, name: str) -> object:
    """A policy from elsewhere."""
    return read_policy(directory / name, PolicyFlags())


def resume_and_train(run_dir: Path) -> None:
    """Resume a copy of the run, and train it for a few steps."""
    with quick_directory() as copies:
        copy = Path(copies) / "run"
        # Copies pipes as pipes, which shutil refuses.
        subprocess.run(["cp", "-a", run_dir, copy], check=True)
        words = ["--resume", str(copy), "--trust-env", "--frames", "400"]
        trainer = build_trainer(parse_arguments(words))
        try:
            trainer.run(trainer.frames + 60)
        finally:
            trainer.close()


LOADERS: dict[str, tuple[Loader, ...]] = {
    "run": (read_run, load_agent, flags_of_run, read_checkpoints, read_replay, resume_and_train),
    "out": (read_report, lambda out: load_states(out / "states"), read_config, read_table),
    "student": (read_run, load_agent, read_config),
    "foreign": tuple(partial(read_foreign, name=name) for name in ("sb3.zip", "cleanrl.pth")),
    "released": (read_run, load_agent, read_config),
}


def make_samples(root: Path) -> dict[str, Path]:
    """A run, a distillation of it, a student, released weights, and policies from elsewhere."""
    run_dir = train_teacher(root / "run")
    record = json.dumps({**evaluation(1.0, 200), "protocol": "paper"})
    (run_dir / "evaluations").mkdir()
    (run_dir / "evaluations/one.json").write_text(record)
    (run_dir / "metrics.jsonl").write_text(
        '{"frames":100}\n{"frames":200,"train/return_last_100_games":1.5}\n'
    )
    (run_dir / "evaluations.jsonl").write_text(
        '{"frames":200,"mean":1.0,"games":2,"interval_95":[0.5,1.5]}\n'
    )
    (run_dir / "provenance.json").write_text(
        '{"ebu_version":"1","commit":"a","hardware":"b","train_seconds":1.5}'
    )
    distilled(run_dir, root / "out")
    student = next(iter(sorted((root / "out/students").iterdir())))
    foreign = root / "foreign"
    foreign.mkdir()
    sb3(foreign / "sb3.zip", CleanDqn(3, 6), 6)
    clean_rl(foreign / "cleanrl.pth", CleanPpoAtari(6, 36), env_id="PongNoFrameskip-v4")
    released = root / "released"
    shutil.copytree(run_dir / "evaluations", released / "evaluations")
    agent = load_agent(run_dir)
    weights = write_weights(
        released, agent.network.state_dict(), which="final", frames=agent.frames
    )
    write_config(released, {**agent.config, RELEASED: weights})
    return {
        "run": run_dir,
        "out": root / "out",
        "student": student,
        "foreign": foreign,
        "released": released,
    }


@contextlib.contextmanager
def damaged(root: Path, rng: random.Random, part: str = "") -> Iterator[str]:
    """The directory with one file altered, of this part of it, and whole again afterwards."""
    files = [path for path in sorted((root / part).rglob("*")) if path.is_file()]
    weights = [1 if path.name.startswith("events") else 8 for path in files]
    (path,) = rng.choices(files, weights)
    manifest = path.parent / "manifest.json"
    before = {each: each.read_bytes() for each in {path, manifest} if each.is_file()}
    # What a program would write is the harder case.
    kinds = [*HOW, *(12 * ["json"] if path.suffix in (".json", ".jsonl") else 3 * ["flip"])]
    how = rng.choice(kinds)
    damage(path, how, files, rng)
    if manifest in before and path.is_file() and not path.is_symlink() and rng.random() < 0.7:
        # As a stranger would, who knows how digests are made.
        with contextlib.suppress(Exception):
            reseal(path.parent)
    try:
        yield f"{path.relative_to(root)}: {how}"
    finally:
        for each, content in before.items():
            restore(each, content)


def fuzz_loaders(samples: dict[str, Path], numbers: range, seed: int, until: float) -> Counter[str]:
    """Load damaged samples; how often each outcome was met, see `outcome`."""
    met: Counter[str] = Counter()
    for number in numbers:
        if time.monotonic() > until:
            break
        rng = random.Random(f"{seed}-{number}")
        kind = rng.choice(list(samples))
        loader = rng.choice(LOADERS[kind])
        if loader is resume_and_train and rng.random() > RESUMED:
            loader = read_checkpoints
        resumes = loader is resume_and_train
        with damaged(samples[kind], rng, "checkpoints/" if resumes else "") as what:
            met[outcome(lambda: loader(samples[kind]), f"input {number}, {kind}/{what}")] += 1  # noqa: B023
    return met


def outcome(call: Callable[[], object], what: str) -> str:
    """`loaded`, `refused` or `helped`; for anything else, what the input was and what came."""
    began, largest = time.process_time(), largest_memory()
    try:
        with silence():
            call()
        found = "loaded"
    except EbuError as error:
        if "\n" in str(error) or not str(error):
            return f"{what}: not one line: {str(error)!r}"
        found = "refused"
    except SystemExit as exit_:
        if exit_.code not in (0, None):
            return f"{what}: exit code {exit_.code}"
        found = "helped"
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-4:]
        where = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in at)
        return f"{what}: {error!r} at {where}"
    if (seconds := time.process_time() - began) > 20:
        return f"{what}: took {seconds:.0f} s"
    if (taken := largest_memory() - largest) > MOST_MEMORY:
        return f"{what}: took {taken:,} bytes of memory"
    return found


def largest_memory() -> int:
    """The most that has been resident so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Print nothing."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


FINE = {"loaded", "refused", "helped"}
WORDS = [
    *("", "0", "1", "-1", "2", "1e6", "10M", "1e400", "9" * 400, "nan", "inf", "0.5", "-0.5", "x"),
    *("pong", "CartPole-v1", "no_module:Env-v0", "ebu", "dqn", "net3", "1-1-1/1", "teacher"),
    *("teacher@svd=3", "kl", "hard", "kl+hint=0.1", "atari5", "base:", "a: --beta 1", "\udcff"),
    *("ε", "a b", "--", "-", "/dev/null", "/nowhere/x", ".", "cpu", "auto", "paper", "float32"),
]


def parse_study(args: list[str]) -> object:
    """As study.py reads its command line."""
    cut = args.index("--") if "--" in args else len(args)
    config = parse(StudyConfig, args[:cut], prog="study.py", description="")
    return plan(config, args[cut + 1 :])


PARSERS: dict[str, tuple[type, Callable[[list[str]], object]]] = {
    "train.py": (Arguments, parse_arguments),
    "evaluate.py": (EvaluateConfig, parse_evaluate),
    "study.py": (StudyConfig, parse_study),
    "distill.py": (
        DistillConfig,
        lambda args: parse(DistillConfig, args, prog="distill.py", description="").plan(),
    ),
    "release.py": (ReleaseConfig, parse_release),
    "report.py": (ReportConfig, lambda args: parse(ReportConfig, args, prog="x", description="")),
}


def _flags(config: type) -> Iterator[str]:
    for entry in dataclasses.fields(config):
        default = entry.default_factory
        if default is not dataclasses.MISSING and dataclasses.is_dataclass(made := default()):
            yield from _flags(type(made))
        else:
            yield f"--{entry.name.replace('_', '-')}"


def fuzz_commands(numbers: range, seed: int, until: float) -> Counter[str]:
    """Parse random command lines; as `fuzz_loaders`."""
    met: Counter[str] = Counter()
    flags = {
        name: [*_flags(config), "--help", "--version"] for name, (config, _) in PARSERS.items()
    }
    for number in numbers:
        if time.monotonic() > until:
            break
        rng = random.Random(f"{seed}-command-{number}")
        name = rng.choice(list(PARSERS))
        args: list[str] = []
        for _ in range(rng.randrange(5)):
            flag = rng.choice(flags[name if rng.random() < 0.9 else "train.py"])
            values = rng.choices(WORDS, k=rng.choice((0, 1, 1, 1, 1, 2)))
            if values and rng.random() < 0.3:
                args.append(f"{flag}={values[0]}")
            else:
                args += [flag, *values]
        if rng.random() < 0.3:
            args.insert(0, rng.choice(WORDS))
        _, parser = PARSERS[name]
        met[outcome(lambda: parser(args), f"command {number}: {name} {args}")] += 1  # noqa: B023
    return met


def main() -> None:
    """Fuzz until all is done or the time is over, and print the counts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--commands", type=int, default=2_000)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=30.0)
    given = options.parse_args()
    began = time.monotonic()
    # What takes all memory fails here, before the machine does.
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    until = began + 60 * given.minutes
    with quick_directory() as root:
        last = given.first + given.commands
        commands = fuzz_commands(range(given.first, last), given.seed, until)
        last = given.first + given.inputs
        with silence():
            samples = make_samples(Path(root))
        inputs = fuzz_loaders(samples, range(given.first, last), given.seed, until)
    wrong = [each for each in [*commands, *inputs] if each not in FINE]
    print("\n".join(sorted(wrong)))
    for name, met, asked in (
        ("commands", commands, given.commands),
        ("inputs", inputs, given.inputs),
    ):
        counts = {found: met[found] for found in sorted(FINE) if met[found]}
        print(f"{sum(met.values()):,} of {asked:,} {name}: {counts}")
    print(f"{len(wrong)} wrong, {time.monotonic() - began:,.0f} s")
    if sum(inputs.values()) < given.inputs or sum(commands.values()) < given.commands:
        sys.exit("not all was tried: give it more --minutes")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
