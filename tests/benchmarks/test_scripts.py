"""Every benchmark from its command line to its results file, at sizes that tell nothing."""

import importlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebu.errors import UsageError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = ["parity", *sorted(path.stem for path in BENCHMARKS.glob("*_speed.py"))]


def report_of(script: str, flags: str, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """Run a benchmark from elsewhere; its results file and what it printed."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", f"benchmarks.{script}", "--json", str(path)]
    done = subprocess.run(
        command + flags.split(), cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["machine"]["cpu"]
    assert report["machine"]["cores"] >= 1
    assert report["versions"].keys() >= {"python", "torch", "numpy", "gymnasium", "ale-py"}
    assert "json" not in report["settings"]
    assert report["settings"]["seed"] == 3
    for heading in ("machine: cpu", "versions: python", "settings: ", "| --- |"):
        assert heading in done.stdout
    assert done.stderr.strip()  # how far it is
    return report, done.stdout


def numbers(figures: Any) -> Iterator[float]:
    """All numbers in a part of a results file."""
    if isinstance(figures, dict):
        figures = list(figures.values())
    if isinstance(figures, list):
        for figure in figures:
            yield from numbers(figure)
    else:
        yield figures


def assert_positive(figures: Any) -> None:
    """There are numbers, all of them finite and above 0."""
    found = list(numbers(figures))
    assert found
    assert all(math.isfinite(number) and number > 0 for number in found), figures


def test_replay_speed(tmp_path: Path) -> None:
    flags = "--replay-capacity 4000 --num-envs 2 --repetitions 5 --device cpu --checkpoint --seed 3"
    report, printed = report_of("replay_speed", flags, tmp_path)
    parts = ["append", "draw", "draw_states", "draw_states_and_next", "draw_segment"]
    assert sorted(report["microseconds"]) == sorted(parts)
    for part in report["microseconds"].values():
        assert sorted(part) == ["median", "p95"]
        assert part["median"] <= part["p95"]
    memory = report["memory"]
    assert sorted(memory) == sorted(
        ["transitions", "segments", "fill_seconds", "resident_before", "peak_resident"]
    )
    # Full but for what starts of games and their stacks take.
    assert 3_800 <= memory["transitions"] <= 4_000
    assert memory["peak_resident"] >= memory["resident_before"] > 2 * 256 * 84 * 84
    checkpoint = report["checkpoint"]
    assert sorted(checkpoint["seconds"]) == ["read_frames", "write_frames"]
    assert checkpoint["bytes"] < 4_000 * 84 * 84
    assert_positive([report["microseconds"], memory, checkpoint])
    assert "| draw states and next |" in printed


def test_target_speed(tmp_path: Path) -> None:
    flags = "--steps 8 40 --learners 1 3 --repetitions 2 --device cpu --seed 3"
    report, printed = report_of("target_speed", flags, tmp_path)
    sizes = [(each["steps"], each["learners"]) for each in report["targets"]]
    assert sizes == [(8, 1), (40, 1), (8, 3), (40, 3)]
    for each in report["targets"]:
        assert sorted(each) == ["difference", "learners", "milliseconds", "ratio", "steps"]
        assert sorted(each["milliseconds"]) == ["loop", "scan", "used"]
        for way, ratio in each["ratio"].items():
            assert ratio == pytest.approx(each["milliseconds"][way] / each["milliseconds"]["used"])
    assert_positive(report["targets"])
    assert "| 40 | 3 |" in printed


def check_environments(against: str, tmp_path: Path) -> None:
    flags = f"--against {against} --num-envs 2 --threads 1 --steps 5 --rounds 2 --seed 3"
    report, printed = report_of("env_speed", flags, tmp_path)
    peers = against.split()
    assert sorted(report["ratio"]) == sorted(peers)
    assert sorted(report["frames_per_second"]) == sorted([*peers, "ours"])
    assert len(report["rounds"]) == 2
    assert_positive([report["rounds"], report["frames_per_second"], report["ratio"]])
    for peer in peers:
        by_round = [each["ours"] / each[peer] for each in report["rounds"]]
        assert report["ratio"][peer]["median"] == pytest.approx(statistics.median(by_round))
        assert f"\n| {peer} |" in printed


def test_env_speed_against_what_it_is_made_of(tmp_path: Path) -> None:
    check_environments("native native_stacks emulator", tmp_path)


def test_env_speed_against_gymnasium(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra `bench` is not installed")
    check_environments("sync async", tmp_path)


def test_train_speed(tmp_path: Path) -> None:
    """With Stable-Baselines3; `test_gpu` runs it without."""
    pytest.importorskip("stable_baselines3", reason="the extra `bench` is not installed")
    flags = (
        "--game breakout --against sb3 --sb3-envs 1 --agents ebu --updates-per-step 0.5 --pairs 1 "
        "--threads 1 --num-envs 2 --window 40 --warmup-updates 2 --learning-starts 100 "
        "--replay-capacity 2000 --device cpu --seed 3"
    )
    report, printed = report_of("train_speed", flags, tmp_path)
    (measured,) = report["rounds"]
    assert list(measured) == list(report["speeds"]) == ["ebu, N=2", "sb3, N=1"]
    for name, run in measured.items():
        speeds = report["speeds"][name]
        assert_positive(speeds)
        assert run["frames"] >= 160
        # A gradient step per 2 agent steps of 4 frames each.
        ratio = speeds["frames_per_second"]["median"] / speeds["updates_per_second"]["median"]
        assert ratio == pytest.approx(8, rel=0.1)
        assert f"\n| {name} |" in printed
    ours, theirs = (run["frames"] / run["seconds"] for run in measured.values())
    assert report["ratio"] == {"ebu": pytest.approx(ours / theirs)}
    assert f"ratio, ebu over SB3's fastest of the round: {ours / theirs:.2f}" in printed


@pytest.mark.parametrize(
    ("script", "flags", "complaint"),
    [
        *((script, "--seed -1", "--seed must") for script in SCRIPTS),
        *((script, "--json no/such/folder.json", "--json no/such") for script in SCRIPTS),
        ("parity", "--json .", "--json ."),
        ("replay_speed", "--game pnog", "pong"),
        ("replay_speed", "--repetitions 0", "--repetitions must"),
        ("target_speed", "--steps 32 0", "--steps must"),
        ("target_speed", "--learners", "nothing to measure"),
        ("target_speed", "--device tpu", "--device tpu"),
        ("env_speed", "--game pnog", "pong"),
        ("env_speed", "--against envpool", "envpool"),
        ("env_speed", "--against native --threads 9999", "cores here"),
        ("train_speed", "--against sb3 --updates-per-step 0.123", "--updates-per-step 0.123"),
        ("train_speed", "--updates-per-step nan", "--updates-per-step must"),
        ("train_speed", "--agents", "nothing to measure"),
        ("train_speed", "--game pnog", "pong"),
        ("update_speed", "--learners 3 1", "must begin with 1"),
        ("update_speed", "--game pnog", "pong"),
        ("parity", "--game pnog --device cpu", "pong"),
        ("parity", "--steps 9", "--steps must"),
        ("parity", "--agents", "nothing to compare"),
        ("gpu", "--minutes 0", "--minutes must"),
        ("gpu", "--device tpu", "--device"),
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
