"""Every benchmark runs, small; its figures are finite; what it cannot measure it refuses."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from benchmarks.call_stack import stack_at_the_loss
from ebu.errors import UsageError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {
    "replay_speed": "--replay-capacity 4000 --num-envs 2 --repetitions 5 --device cpu --checkpoint",
    "target_speed": "--steps 8 40 --learners 1 3 --repetitions 2 --device cpu",
    "env_speed": "--against native emulator --num-envs 2 --threads 1 --steps 5 --rounds 2",
    "parity": "--device cpu --num-envs 2 --threads 1 --steps 100 --updates 2 --agents ebu",
    "update_speed": (
        "--device cpu --num-envs 2 --threads 1 --steps 100 --repetitions 1 --learners 1 2 "
        "--precisions float32"
    ),
    "ingredient_speed": "--num-envs 2 --steps 100 --updates 2 --rounds 1",
    "host_speed": "--num-envs 2 --steps 100 --repetitions 2 --rounds 1",
    "train_speed": (
        "--game breakout --agents ebu --updates-per-step 0.5 --pairs 1 --threads 1 --num-envs 2 "
        "--window 40 --warmup-updates 2 --learning-starts 100 --replay-capacity 2000 --device cpu"
    ),
}
LONG = ("parity", "update_speed", "ingredient_speed", "host_speed", "train_speed")
"""Ten seconds and more of processor time each; their parts have quick tests."""
HEADINGS = {
    "replay_speed": ("microseconds", "memory", "checkpoint"),
    "target_speed": ("targets",),
    "env_speed": ("rounds", "frames_per_second", "ratio"),
    "parity": ("tolerance", "parity"),
    "update_speed": ("matrix", "copy", "pieces"),
    "ingredient_speed": ("rounds", "medians", "ratios"),
    "host_speed": ("rounds", "medians"),
    "train_speed": ("rounds", "machine_rates", "runs", "limits"),
}


def run_small(script: str, tmp_path: Path, more: str = "") -> dict[str, Any]:
    """Run a benchmark in a process of its own and read its results file."""
    path = tmp_path / "results.json"
    flags = [*SMALL[script].split(), *more.split(), "--seed", "3", "--json", str(path)]
    command = [sys.executable, "-m", f"benchmarks.{script}", *flags]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "| --- |" in done.stdout
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert report["settings"]["seed"] == 3
    return report


def numbers(figures: Any) -> Iterator[float]:
    """All numbers in a part of a results file."""
    if isinstance(figures, dict):
        figures = list(figures.values())
    if isinstance(figures, list):
        for figure in figures:
            yield from numbers(figure)
    elif isinstance(figures, float):
        yield figures


@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SMALL],
)
def test_a_benchmark_measures_and_reports(script: str, tmp_path: Path) -> None:
    report = run_small(script, tmp_path)
    for heading in HEADINGS[script]:
        found = list(numbers(report[heading]))
        assert found
        assert all(math.isfinite(number) and number >= 0 for number in found), report[heading]
    if script == "parity":
        # Without a GPU there are no graphs.
        assert report["parity"][0]["bitwise"]
    if script == "train_speed":
        (run,) = report["rounds"][0].values()
        # A gradient step per 2 agent steps of 4 frames each.
        assert run["frames"] / run["updates"] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("env_speed", "--against sync async"),
        ("train_speed", "--against sb3 --sb3-envs 1"),
    ],
)
def test_a_benchmark_compares_with_others(script: str, more: str, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra `bench` is not installed")
    report = run_small(script, tmp_path, more)
    assert report["ratio"] if script == "env_speed" else report["runs"]["ebu, N=2"]["over_sb3"]


def test_the_loss_is_four_files_from_the_command() -> None:
    files = [path for path, _ in groupby(each.partition(":")[0] for each in stack_at_the_loss())]
    assert files[-1] == "agents/learner.py"
    assert len(files) == len(set(files)) <= 4


@pytest.mark.parametrize(
    ("script", "flags", "complaint"),
    [
        *((script, "--seed -1", "--seed must") for script in (*SMALL, "gpu")),
        ("parity", "--json no/such/folder.json", "--json no/such"),
        ("parity", "--json .", "--json ."),
        ("parity", "--game pnog --device cpu", "pong"),
        ("parity", "--agents", "nothing to compare"),
        ("target_speed", "--learners", "nothing to measure"),
        ("target_speed", "--device tpu", "--device tpu"),
        ("env_speed", "--against native --threads 9999", "cores here"),
        ("train_speed", "--against sb3 --updates-per-step 0.123", "--updates-per-step 0.123"),
        ("train_speed", "--agents", "nothing to measure"),
        ("update_speed", "--learners 3 1", "must begin with 1"),
    ],
)
def test_a_benchmark_refuses_in_one_line_what_it_cannot_measure(
    script: str, flags: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *flags.split()])
    with pytest.raises(UsageError) as refused:
        importlib.import_module(f"benchmarks.{script}").main()
    message = str(refused.value)
    assert complaint in message
    assert "\n" not in message
