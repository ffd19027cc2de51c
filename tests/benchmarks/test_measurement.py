"""What the benchmarks share, on hand-made figures."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import measurement

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings(measurement.BenchmarkSettings):
    """As a benchmark has them."""

    steps: tuple[int, ...] = (1, 2)


def test_every_timed_call_gets_arguments_of_its_own() -> None:
    given: list[int] = []
    count = measurement.WARMUP_CALLS + 2
    seconds = measurement.times(given.append, 2, CPU, ((number,) for number in range(count)))
    assert given == list(range(count))
    assert len(seconds) == 2
    assert min(seconds) >= 0


def test_calls_without_arguments_are_repeated() -> None:
    calls: list[None] = []
    seconds = measurement.times(lambda: calls.append(None), 5, CPU)
    assert len(seconds) == 5
    assert len(calls) == measurement.WARMUP_CALLS + 5


def test_summaries_of_several_measurements() -> None:
    values = measurement.spread([3.0, 1.0, 8.0])
    assert values == {"min": 1.0, "median": 3.0, "max": 8.0}
    assert measurement.ranged(values) == "3.00 (1.00-8.00)"
    # 95 of 100 equal intervals between 0 and 20.
    assert measurement.median_and_p95(range(21)) == {"median": 10, "p95": 19.0}


def test_a_results_file_holds_the_conditions_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["any", "--json", str(path), "--steps", "3"])
    measurement.run_benchmark(
        Settings,
        lambda settings: {"seconds": [0.5]},
        lambda figures: measurement.markdown(("part", "s"), [("draw", str(figures["seconds"]))]),
        description="",
        packages=("no-such-package",),
        conditions={"schedule": {"epsilon": 0.1}},
    )
    record = json.loads(path.read_text())
    assert list(record) == ["machine", "versions", "settings", "schedule", "seconds"]
    assert record["settings"] == {"seed": 0, "steps": [3]}
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["no-such-package"] == "not installed"
    assert record["machine"]["memory_bytes"] > 2**20
    table = "\n\n| part | s |\n| --- | --- |\n| draw | [0.5] |\n"
    assert capsys.readouterr().out.endswith(f"schedule: epsilon 0.1{table}")
