"""All that a machine with a GPU can show, in one command of less than 9 minutes, offline.

    python -m benchmarks.gpu --json gpu.json

| part | script |
| --- | --- |
| targets | target_speed: backward targets, the scan against the recursion step by step |
| replay | replay_speed: a memory of a million transitions on the GPU |
| environments | env_speed: the emulators on all cores |
| parity, also deterministic | parity: CUDA graphs against the same operations one by one |
| pieces | update_speed: every graph beside its limits; eleven learners as one |
| deterministic | train_speed: what --deterministic costs |
| pong, breakout at U updates per step | train_speed: whole runs, their stages beside the limits; |
| | Pong also in bfloat16 and, at the default preset's U, an evaluation's share |

Each part has a share of the time left, and is stopped after it. One that fails is recorded with
what it complained of, and the others still run; training comes last and takes as many rounds as
there is time for.

The results file is written after every part. It holds `parts`, by their names: the `command`, the
`seconds` it took and its `results`, see the script, or its `error` in one line. A Markdown file
beside it, of the same name, holds all tables.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.measurement import require_at_least, require_writable, say, stated
from ebu.commands.presets import DEFAULT
from ebu.errors import EbuError, UsageError
from ebu.run.cli import all_cores, parse, run_command

ROOT = Path(__file__).resolve().parents[1]
# Seconds at the end of a part in which no round of training may still be under way.
MARGIN = 5


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cuda; cpu tries every part out, at sizes that tell nothing."""
    num_envs: int = 64
    """Environments of ours."""
    threads: int = 0
    """Cores to use; 0: all."""
    minutes: float = 8.5
    """Minutes for all parts together."""
    seed: int = 0
    """Seed of everything."""
    json: Path = Path("gpu.json")
    """Where the results go; the tables go beside it, to the same name with .md."""


class Part(NamedTuple):
    """One call of another benchmark.

    | field | meaning |
    | --- | --- |
    | flags | of the script, beside --json |
    | weight | what it takes of the time that is left, beside the weights of those after it |
    | rounds | it takes --minutes and repeats itself for so long |
    """

    name: str
    script: str
    flags: str
    weight: float
    rounds: bool = False


def parts_of(settings: Settings) -> list[Part]:
    """Everything to be measured, in order."""
    environments = "native native_stacks emulator"
    if util.find_spec("cv2"):
        environments += " sync async"
    every = f"--device {settings.device} --seed {settings.seed}"
    played = f"{every} --num-envs {settings.num_envs}"
    on_cores = f"--num-envs {settings.num_envs} --threads {settings.threads}"
    train = (
        f"{every} {on_cores} --replay-capacity 1000000 --warmup-updates 2000 "
        f"--learning-starts {DEFAULT.method.learning_starts}"
    )
    both = "--precisions float32 bfloat16"
    each_step = "--updates-per-step 1 --window 20000"
    each_fourth = "--updates-per-step 0.25 --window 35000"
    return [
        Part("targets", "target_speed", f"{every} --steps 32 512 8192 --repetitions 3", 40),
        Part("replay", "replay_speed", f"{played} --repetitions 1000", 40),
        Part(
            "environments",
            "env_speed",
            f"{on_cores} --seed {settings.seed} --steps 100 --rounds 3 --against {environments}",
            50,
        ),
        Part("parity", "parity", f"{every} {both}", 75),
        Part("parity, deterministic", "parity", f"{every} {both} --deterministic", 75),
        Part("pieces", "update_speed", f"{played} {both}", 60),
        Part(
            "deterministic",
            "train_speed",
            f"{train} --agents ebu --deterministic {each_step}",
            45,
            True,
        ),
        Part("pong at 1 updates per step", "train_speed", f"{train} {both} {each_step}", 80, True),
        Part(
            "breakout at 1 updates per step",
            "train_speed",
            f"{train} --game breakout {each_step}",
            50,
            True,
        ),
        Part(
            "pong at 0.25 updates per step",
            "train_speed",
            f"{train} {both} {each_fourth} --evaluate",
            95,
            True,
        ),
        Part(
            "breakout at 0.25 updates per step",
            "train_speed",
            f"{train} --game breakout {each_fourth}",
            50,
            True,
        ),
    ]


def small_parts(settings: Settings) -> list[Part]:
    """Each script once, at sizes that take seconds."""
    every = f"--device cpu --seed {settings.seed}"
    few = f"--num-envs {settings.num_envs} --threads {settings.threads}"
    return [
        Part("targets", "target_speed", f"{every} --steps 8 --learners 1 --repetitions 1", 20),
        Part("replay", "replay_speed", f"{every} {few} --replay-capacity 900 --repetitions 1", 20),
        Part(
            "environments",
            "env_speed",
            f"{few} --seed {settings.seed} --against native --steps 5 --rounds 1",
            20,
        ),
        Part("parity", "parity", f"{every} {few} --steps 100 --updates 2", 20),
        Part(
            "pieces",
            "update_speed",
            f"{every} {few} --steps 100 --repetitions 1 --learners 1 2 --precisions float32",
            20,
        ),
        Part(
            "breakout at 1 updates per step",
            "train_speed",
            f"{every} {few} --game breakout --agents dqn --updates-per-step 1 --window 40 "
            "--warmup-updates 2 --learning-starts 100 --replay-capacity 2000 --pairs 1",
            40,
            True,
        ),
    ]


class Outcome(NamedTuple):
    """What became of a part: the entry of the results file, and its tables."""

    entry: dict[str, Any]
    tables: str


def run_part(part: Part, seconds: float) -> Outcome:
    """Run a part for at most so long, in a process group that ends with it."""
    flags = part.flags.split()
    if part.rounds:
        flags += ["--minutes", f"{max(seconds - MARGIN, 1) / 60:.2f}"]
    command = ["-m", f"benchmarks.{part.script}", *flags]
    entry: dict[str, Any] = {"command": " ".join(["python", *command])}
    with tempfile.TemporaryDirectory() as name:
        results, printed, log = (Path(name, file) for file in ("results", "printed", "log"))
        started = time.monotonic()
        with printed.open("w") as out, log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, *command, "--json", str(results)],
                cwd=ROOT,
                stdout=out,
                stderr=errors,
                process_group=0,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        entry["seconds"] = time.monotonic() - started
        if code is None:
            return Outcome({**entry, "error": f"not done after {seconds:.0f} s"}, "")
        if code != 0:
            lines = log.read_text().strip().splitlines() or [f"exit status {code}"]
            return Outcome({**entry, "error": lines[-1]}, "")
        figures = json.loads(results.read_text())
        # Said once, for all parts.
        del figures["machine"], figures["versions"]
        return Outcome({**entry, "results": figures}, printed.read_text().partition("\n\n")[2])


def write(context: dict[str, Any], outcomes: dict[str, Outcome], path: Path) -> str:
    """Write what there is to the results file and the tables; returns these."""
    lines = [f"# Benchmarks on {context['machine']['gpu'] or context['machine']['cpu']}\n"]
    for title, fields in context.items():
        lines.append(f"{title}: " + ", ".join(f"{key} {value}" for key, value in fields.items()))
        lines.append("")
    for name, (entry, tables) in outcomes.items():
        lines.append(f"## {name}\n\n    {entry['command']}\n")
        lines.append(tables or f"failed: {entry['error']}\n")
    text = "\n".join(lines)
    parts = {name: outcome.entry for name, outcome in outcomes.items()}
    try:
        path.write_text(
            json.dumps({**context, "parts": parts}, indent=2, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        path.with_suffix(".md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise EbuError(f"--json {path}: {error.strerror or error}") from error
    return text


def run_parts(parts: list[Part], context: dict[str, Any], settings: Settings) -> str:
    """Run all parts in the time there is and write the results.

    Returns all tables; raises `EbuError`, after everything is written, if a part failed.
    """
    ends = time.monotonic() + 60 * settings.minutes
    outcomes: dict[str, Outcome] = {}
    for number, part in enumerate(parts):
        weights = sum(each.weight for each in parts[number:])
        seconds = (ends - time.monotonic()) * part.weight / weights
        say(f"{number + 1}/{len(parts)}  {part.name}: at most {seconds:.0f} s")
        outcome = outcomes[part.name] = run_part(part, seconds)
        text = write(context, outcomes, settings.json)
        told = outcome.entry.get("error", f"done in {outcome.entry['seconds']:.0f} s")
        say(f"{number + 1}/{len(parts)}  {part.name}: {told}")
    failed = [name for name, outcome in outcomes.items() if "error" in outcome.entry]
    if failed:
        raise EbuError(f"failed: {'; '.join(failed)}; all else is in {settings.json}")
    return text


def main() -> None:
    """Run all parts, print the tables and write both files."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="python -m benchmarks.gpu",
        description="All that a machine with a GPU can show, in one results file.",
    )
    require_at_least(1, settings, "num_envs")
    require_at_least(0, settings, "threads", "seed")
    if not settings.minutes > 0:
        raise UsageError(f"--minutes is {settings.minutes}; give a positive number")
    require_writable(settings.json)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device here; --device cpu tries every part out, at sizes that tell "
            "nothing"
        )
    settings = replace(settings, threads=settings.threads or all_cores())
    parts = parts_of(settings) if settings.device == "cuda" else small_parts(settings)
    print(run_parts(parts, stated(settings), settings))


if __name__ == "__main__":
    run_command(main)
