"""A training of half an hour, whose resident memory must stay where it was once the ring is full.

    python -m tests.soak --minutes 30

It plays, learns, logs, evaluates, films and saves as ever, with a replay memory small enough to be
overwritten many times. Memory is measured from outside, twice a second.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ebu.commands.reporting.runs import tail
from ebu.run.directory import METRICS
from ebu.run.hints import program_argv

CAPACITY, FRAMES_PER_STEP = 3_000, 4
FLAGS = (
    f"--game pong --num-envs 4 --replay-capacity {CAPACITY} --learning-starts 1000 --threads 1 "
    "--network net3 --updates-per-step 0.1 --device cpu --log-every-frames 2000 "
    "--eval-every-frames 16000 --eval-episodes 2 --eval-max-steps 200 --checkpoint-minutes 0.5 "
    "--frames 1000000000"
)
FULL_AFTER = 3 * CAPACITY * FRAMES_PER_STEP
"""Emulator frames: the ring has been overwritten twice, and each kind of work was done once."""
ALLOWED = 0.01
SHARE = 4
"""The first and the last of this many parts of the time are compared."""


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure(run_dir: Path, minutes: float) -> tuple[list[int], int, int]:
    """Train; resident memory since the ring is full, frames played, the exit code."""
    log = run_dir.with_name("log")
    with log.open("wb") as output:
        training = subprocess.Popen(
            [*program_argv("train.py", *FLAGS.split(), "--run-dir", run_dir)],
            stdout=output,
            stderr=output,
        )
        ends, frames, sizes = time.monotonic() + 60 * minutes, 0, list[int]()
        while time.monotonic() < ends and training.poll() is None:
            time.sleep(0.5)
            if frames < FULL_AFTER:
                lines = tail(run_dir / METRICS) if (run_dir / METRICS).exists() else []
                frames = lines[-1]["frames"] if lines else 0
            else:
                sizes.append(resident_bytes(training.pid))
        training.terminate()
        code = training.wait()
    if code != 128 + signal.SIGTERM:
        sys.exit(f"train.py ended with {code}: {log.read_text(errors='replace')[-2000:]}")
    frames = json.loads((run_dir / METRICS).read_text().splitlines()[-1])["frames"]
    return sizes, frames, code


def main() -> None:
    """Measure, and end with 1 where memory has grown or shrunk."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sizes, frames, _ = measure(Path(directory) / "run", given.minutes)
    part = len(sizes) // SHARE
    if part < 10:
        sys.exit(f"the ring was full too late, {frames:,} frames: give it more --minutes")
    first, last = statistics.median(sizes[:part]), statistics.median(sizes[-part:])
    change = last / first - 1
    print(
        f"{given.minutes:g} minutes, {frames:,} frames, the ring filled "
        f"{frames / FRAMES_PER_STEP / CAPACITY:.1f} times: {first / 2**20:,.1f} MiB resident, then "
        f"{last / 2**20:,.1f} MiB, {change:+.2%}; at most {max(sizes) / 2**20:,.1f} MiB"
    )
    sys.exit(abs(change) > ALLOWED)


if __name__ == "__main__":
    main()
