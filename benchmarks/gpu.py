"""All that a machine with a GPU can show, in one command of less than 9 minutes, offline.

    python -m benchmarks.gpu --json gpu.json

| part | benchmark |
| --- | --- |
| targets | target_speed: backward targets, the scan against the recursion step by step |
| replay | replay_speed: a memory of a million transitions on the GPU |
| environments | env_speed: the emulators on all cores |
| parity, also deterministic | parity: CUDA graphs against the same operations one by one |
| pieces | update_speed: every graph with its limits; eleven learners as one |
| deterministic | train_speed: what --deterministic costs |
| pong, breakout at U updates per step | train_speed: whole runs, their stages with the limits; |
| | Pong also in bfloat16 and, at the default preset's U, an evaluation's share |

Each part has a share of the time left, and is stopped after it. One that fails is recorded with
its last line, and the others still run; training comes last and takes as many rounds as there is
time for.

The results file is written after every part. It holds `parts`, by their names: the `command`, the
`seconds` it took and its `results`, see the benchmark, or its `error` in one line. A Markdown file
of the same name holds all tables.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measurement import BenchmarkSettings, describe, parse_settings, say, write_json
from ebu.commands.presets import DEFAULT
from ebu.errors import EbuError, UsageError
from ebu.run.cli import all_cores, run_command
from ebu.run.files import write_whole
from ebu.run.settings import Positive, PositiveFloat, Threads

ROOT = Path(__file__).resolve().parents[1]
# Seconds at the end of a part in which no round of training may still be under way.
MARGIN = 5


@dataclass(frozen=True)
class Settings(BenchmarkSettings):
    """What is measured."""

    num_envs: Positive = 64
    """Environments of ours."""
    threads: Threads = 0
    """Cores to use; 0: all."""
    minutes: PositiveFloat = 8.5
    """Minutes for all parts together."""
    json: Path | None = Path("gpu.json")
    """Where the results go; the tables go to the same name with .md."""


class Part(NamedTuple):
    """One call of another benchmark.

    | field | meaning |
    | --- | --- |
    | weight | share of the time left that it takes, relative to that of the parts after it |
    | command | name of the benchmark and its flags, without --json |
    | rounds | it takes --minutes and repeats itself that long |
    """

    name: str
    weight: float
    command: str
    rounds: bool = False


def parts_of(settings: Settings) -> list[Part]:
    """Everything to be measured, in order."""
    peers = "native emulator" + (" sync async" if util.find_spec("cv2") else "")
    seed = f"--seed {settings.seed}"
    every = f"{seed} --device cuda"
    envs = f"--num-envs {settings.num_envs}"
    cores = f"{envs} --threads {settings.threads}"
    both = "--precisions float32 bfloat16"
    train = (
        f"train_speed {every} {cores} --replay-capacity 1000000 --warmup-updates 2000 "
        f"--learning-starts {DEFAULT.loop.learning_starts}"
    )
    each = "--updates-per-step 1 --window 20000"
    fourth = "--updates-per-step 0.25 --window 35000"
    breakout = "--game breakout"
    short = "--steps 100 --rounds 3"
    return [
        Part("targets", 40, f"target_speed {every} --steps 32 512 8192 --repetitions 3"),
        Part("replay", 40, f"replay_speed {every} {envs} --repetitions 1000"),
        Part("environments", 50, f"env_speed {seed} {cores} {short} --against {peers}"),
        Part("parity", 75, f"parity {every} {both}"),
        Part("parity, deterministic", 75, f"parity {every} {both} --deterministic"),
        Part("pieces", 60, f"update_speed {every} {envs} {both}"),
        Part("deterministic", 45, f"{train} --agents ebu --deterministic {each}", True),
        Part("pong at 1 updates per step", 80, f"{train} {both} {each}", True),
        Part("breakout at 1 updates per step", 50, f"{train} {breakout} {each}", True),
        Part("pong at 0.25 updates per step", 95, f"{train} {both} {fourth} --evaluate", True),
        Part("breakout at 0.25 updates per step", 50, f"{train} {breakout} {fourth}", True),
    ]


class PartResult(NamedTuple):
    """A part's entry in the results file, and its tables."""

    entry: dict[str, Any]
    tables: str


def run_part(part: Part, seconds: float) -> PartResult:
    """Run a part for at most so long, in a process group that ends with it."""
    benchmark, *flags = part.command.split()
    if part.rounds:
        flags += ["--minutes", f"{max(seconds - MARGIN, 1) / 60:.2f}"]
    command = ["-m", f"benchmarks.{benchmark}", *flags]
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
            return PartResult({**entry, "error": f"not done after {seconds:.0f} s"}, "")
        if code != 0:
            lines = log.read_text().strip().splitlines() or [f"exit status {code}"]
            return PartResult({**entry, "error": lines[-1]}, "")
        figures = json.loads(results.read_text())
        # Said once, for all parts.
        del figures["machine"], figures["versions"]
        return PartResult({**entry, "results": figures}, printed.read_text().partition("\n\n")[2])


def write(context: dict[str, Any], parts: dict[str, PartResult], path: Path) -> str:
    """Write what there is to the results file and the tables; returns these."""
    lines = [f"# Benchmarks on {context['machine']['gpu'] or context['machine']['cpu']}\n"]
    for title, fields in context.items():
        line = ", ".join(f"{key} {value}" for key, value in fields.items())
        lines.append(f"{title}: {line}\n")
    for name, (entry, tables) in parts.items():
        lines.append(f"## {name}\n\n    {entry['command']}\n")
        lines.append(tables or f"failed: {entry['error']}\n")
    text = "\n".join(lines)
    write_json(path, {**context, "parts": {name: part.entry for name, part in parts.items()}})
    write_whole(path.with_suffix(".md"), text.encode())
    return text


def run_parts(parts: Sequence[Part], context: dict[str, Any], minutes: float, path: Path) -> str:
    """Run all parts in the time there is and write the results.

    Returns all tables; raises `EbuError`, after everything is written, if a part failed.
    """
    ends = time.monotonic() + 60 * minutes
    done: dict[str, PartResult] = {}
    for number, part in enumerate(parts):
        weights = sum(each.weight for each in parts[number:])
        seconds = (ends - time.monotonic()) * part.weight / weights
        say(f"{number + 1}/{len(parts)}  {part.name}: at most {seconds:.0f} s")
        result = done[part.name] = run_part(part, seconds)
        text = write(context, done, path)
        line = result.entry.get("error", f"done in {result.entry['seconds']:.0f} s")
        say(f"{number + 1}/{len(parts)}  {part.name}: {line}")
    failed = [name for name, result in done.items() if "error" in result.entry]
    if failed:
        raise EbuError(f"failed: {'; '.join(failed)}; all else is in {path}")
    return text


def main() -> None:
    """Run all parts, print the tables and write both files."""
    settings = parse_settings(Settings)
    if not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here; each benchmark alone runs on the CPU, too")
    settings = replace(settings, threads=settings.threads or all_cores())
    path = settings.json or Path("gpu.json")
    print(run_parts(parts_of(settings), describe(settings), settings.minutes, path))


if __name__ == "__main__":
    run_command(main)
