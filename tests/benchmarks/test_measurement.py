"""Timing, interleaving and results files, on hand-made figures."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import measurement
from ebu.run import markdown


@dataclass(frozen=True)
class Settings(measurement.BenchmarkSettings):
    """As a benchmark has them."""

    steps: tuple[int, ...] = (1, 2)


def test_every_timed_call_gets_arguments_of_its_own() -> None:
    given: list[int] = []
    count = measurement.WARMUP_CALLS + 2
    arguments = ((number,) for number in range(count))
    seconds = measurement.times(given.append, 2, torch.device("cpu"), arguments)
    assert given == list(range(count))
    assert len(seconds) == 2
    assert min(seconds) >= 0


@pytest.mark.parametrize(("minutes", "rounds"), [(None, 3), (1.0, 3), (0.5, 2), (0.1, 1)])
def test_rounds_are_interleaved_and_end_in_time(
    minutes: float | None, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of 15 seconds: the third would end after 45."""
    clock = [0.0]

    def task(number: int) -> float:
        clock[0] += 7.5
        return number + clock[0]

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    results = measurement.interleave({"a": task, "b": task}, 3, minutes)
    expected = [{"a": 7.5, "b": 15.0}, {"a": 23.5, "b": 31.0}, {"a": 39.5, "b": 47.0}]
    assert results == expected[:rounds]


def test_a_results_file_holds_the_conditions_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["any", "--json", str(path), "--steps", "3"])
    measurement.run_benchmark(
        Settings,
        lambda settings: {"seconds": measurement.spread([3.0, 1.0, 8.0])},
        lambda figures: markdown.table(
            ("part", "s"), [("draw", measurement.ranged(figures["seconds"]))]
        ),
        packages=("no-such-package",),
        conditions={"schedule": {"epsilon": 0.1}},
    )
    record = json.loads(path.read_text())
    assert list(record) == ["machine", "versions", "settings", "schedule", "seconds"]
    assert record["settings"] == {"seed": 0, "steps": [3]}
    assert record["versions"]["no-such-package"] == "not installed"
    table = "\n\n| part | s |\n| --- | --- |\n| draw | 3.00 (1.00-8.00) |\n"
    assert capsys.readouterr().out.endswith(f"schedule: epsilon 0.1{table}")
