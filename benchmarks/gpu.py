"""All that a machine with a GPU can show, offline: checks, figures, and a game of 10M frames.

    python -m benchmarks.gpu --run checks       about 4 minutes, at most 5
    python -m benchmarks.gpu --run figures      about 6 minutes, at most 7
    python -m benchmarks.gpu --run game --game pong
    python -m benchmarks.gpu --run checks --device cpu --rehearse      anywhere, in small

| run | what it measures |
| --- | --- |
| checks | each path on the device once (`gpu_checks`) |
| figures | targets, graphs, emulators and whole runs, those that decide first (`gpu_figures`) |
| game | train.py from start to end; it is stopped after --minutes, and resumed when repeated |

Results go to --out as `RUN.jsonl`, a line as soon as there is a figure, see `pieces`; at the end
all of them to `RUN.md`. What processes print is in `RUN.log`. Whatever is killed, the lines stay.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.gpu_checks import Scope, checks_of
from benchmarks.gpu_figures import figures_pieces
from benchmarks.measurement import BenchmarkSettings, describe, parse_settings, say
from benchmarks.pieces import ROOT, Notes, Piece, supervise, tables, work
from benchmarks.runs import one_set_of_environments
from ebu.errors import EbuError, UsageError
from ebu.run.cli import run_command
from ebu.run.directory import EVALUATIONS, METRICS
from ebu.run.files import write_whole
from ebu.run.logs import last_frames
from ebu.run.machine import device_named, prepare_torch
from ebu.run.settings import Device, Positive, PositiveFloat, Threads

MINUTES = {"checks": 5.0, "figures": 7.0, "game": 9.0}
STOPPING_SECONDS = 30
"""In which a stopped run writes its checkpoint."""


@dataclass(frozen=True)
class Settings(BenchmarkSettings):
    """What is measured."""

    run: Literal["checks", "figures", "game"] = "checks"
    """Which of the three."""
    out: Path = Path("runs/gpu")
    """Directory of the results."""
    only: str = ""
    """Only pieces with this in their name."""
    device: Device = "cuda"
    """cuda; cpu with --rehearse."""
    rehearse: bool = False
    """Everything in small, to see that it runs."""
    minutes: PositiveFloat | None = None
    """For all of it [default: 5 for checks, 7 for figures, 9 for a game]."""
    num_envs: Positive = 64
    """Environments of a run."""
    threads: Threads = 0
    """Threads of torch and of the emulators; 0: one for torch, all cores for the emulators."""
    game: str = "pong"
    """Of --run game."""
    frames: Positive = 10_000_000
    """Of --run game."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of --run game."""
    worker: tuple[str, ...] = ()
    """Set by the program itself: when it began, and the pieces to measure in this process."""

    def checked(self) -> Self:
        """These settings. Raises `UsageError` without a GPU."""
        if self.device == "cpu" and not self.rehearse:
            raise UsageError("--device cpu: add --rehearse, or run the benchmarks one by one")
        device_named(self.device)
        return self


def scope_of(settings: Settings) -> Scope:
    """The machine and the size."""
    return Scope(
        device=device_named(settings.device),
        rehearse=settings.rehearse,
        num_envs=4 if settings.rehearse else settings.num_envs,
        threads=settings.threads,
        seed=settings.seed,
    )


def pieces_of(settings: Settings) -> list[Piece]:
    """The pieces of a run, in order."""
    pieces = (checks_of if settings.run == "checks" else figures_pieces)(scope_of(settings))
    chosen = [piece for piece in pieces if settings.only in piece.name]
    if not chosen:
        names = ", ".join(piece.name for piece in pieces)
        raise UsageError(f"--only {settings.only}: no piece has this in its name: {names}")
    # Limits are those of a GPU: a rehearsal on a busy processor must not fail for its speed.
    return [
        piece._replace(seconds=piece.seconds * (10 if settings.rehearse else 1)) for piece in chosen
    ]


def measure_here(settings: Settings) -> int:
    """Measure pieces in this process."""
    # Read when cuBLAS first computes; the runs with --deterministic need it.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    scope = scope_of(settings)
    prepare_torch(scope.device, settings.threads or 1, autotune=True)
    began, *names = settings.worker
    with one_set_of_environments():
        path = settings.out / f"{settings.run}.jsonl"
        return work(pieces_of(settings), names, path, float(began))


def measure_all(settings: Settings) -> None:
    """Have all pieces measured, and write the tables. Raises `EbuError` if one failed."""
    path = settings.out / f"{settings.run}.jsonl"
    flags = [f"--{name}" for name in ("rehearse",) if settings.rehearse]
    for name in ("run", "out", "only", "device", "num_envs", "threads", "seed"):
        value = getattr(settings, name)
        if value != "":
            flags.append(f"--{name.replace('_', '-')}={value}")
    command = [sys.executable, "-m", "benchmarks.gpu", *flags, "--worker"]
    pieces = pieces_of(settings)
    minutes = settings.minutes or MINUTES[settings.run]
    try:
        failed = supervise(command, pieces, path, minutes, describe(settings))
    finally:
        write_tables(path)
    if failed:
        raise EbuError(f"failed: {'; '.join(failed)}; all that there is lies in {path}")


def write_tables(path: Path) -> None:
    """Print what was noted, and write it next to the results file."""
    text = "\n".join(tables(Notes(path, 0.0).read())) + "\n"
    write_whole(path.with_suffix(".md"), text.encode())
    print(text)


def play_game(settings: Settings) -> None:
    """Train on a game for the time there is, resuming what was begun, and note how far it came."""
    run_dir = settings.out / f"{settings.game}-{settings.precision}"
    frames = 4_000 if settings.rehearse else settings.frames
    flags = {
        "game": settings.game,
        "run-dir": run_dir,
        "frames": frames,
        "precision": settings.precision,
        "num-envs": scope_of(settings).num_envs,
        "threads": settings.threads,
        "device": settings.device,
        "seed": settings.seed,
    }
    if settings.rehearse:
        flags |= {"network": "net1", "replay-capacity": 2_000, "learning-starts": 200}
        flags |= {"eval-every-frames": 2_000, "eval-episodes": 1, "updates-per-step": 0.1}
    before = played(run_dir)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "train.py", *(f"--{name}={value}" for name, value in flags.items())],
        cwd=ROOT,
    )
    seconds = 60 * (settings.minutes or MINUTES["game"]) - STOPPING_SECONDS
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.terminate)
        try:
            process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
    taken = time.monotonic() - started
    notes = Notes(settings.out / "game.jsonl", time.time() - taken)
    evaluations = run_dir / EVALUATIONS
    scores = evaluations.read_text().splitlines() if evaluations.is_file() else []
    figures: dict[str, Any] = {
        "frames": played(run_dir),
        "seconds": taken,
        "frames per second": (played(run_dir) - before) / taken,
        "exit code": process.returncode,
        "last evaluation": json.loads(scores[-1]) if scores else None,
    }
    notes.add(f"{settings.game}, {settings.precision}", figures)
    print(f"{figures['frames']:,} of {frames:,} frames in {run_dir}")
    if figures["frames"] < frames:
        say("repeat the command to play on")


def played(run_dir: Path) -> int:
    """Frames in the logs of a run."""
    path = run_dir / METRICS
    return (last_frames(path) or 0) if path.is_file() else 0


def main() -> int:
    """Measure, or have it measured."""
    settings = parse_settings(Settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    # As Ctrl-C: processes that were started end, and the tables are written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if settings.worker:
        return measure_here(settings)
    if settings.run == "game":
        play_game(settings)
    else:
        measure_all(settings)
    return 0


if __name__ == "__main__":
    run_command(main)
