"""What the benchmarks share, on hand-made figures."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import measurement
from ebu.errors import EbuError, UsageError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """As a benchmark has them."""

    steps: tuple[int, ...] = (1, 2)
    num_envs: int = 4
    json: Path | None = None


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
    assert measurement.spread([3.0, 1.0, 8.0]) == {"min": 1.0, "median": 3.0, "max": 8.0}
    # 95 of 100 equal intervals between 0 and 20.
    assert measurement.usual_and_slow(range(21)) == {"median": 10, "p95": 19.0}


def test_a_markdown_table() -> None:
    table = measurement.markdown(("part", "ms"), [("draw", "1.0"), ("append", "2.0")])
    assert table == "| part | ms |\n| --- | --- |\n| draw | 1.0 |\n| append | 2.0 |"


def test_the_conditions_of_a_measurement() -> None:
    context = measurement.stated(Settings(json=Path("x.json")), ("no-such-package",))
    assert list(context) == ["machine", "versions", "settings"]
    assert context["settings"] == {"steps": (1, 2), "num_envs": 4}
    assert context["versions"]["torch"] == torch.__version__
    assert context["versions"]["no-such-package"] == "not installed"
    assert context["machine"]["memory_bytes"] > 2**20
    assert (context["machine"]["gpu"] is None) == (not torch.cuda.is_available())


def test_a_results_file_holds_the_conditions_and_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    context = {"settings": {"seed": 1, "game": "pong"}}
    measurement.publish(context, {"seconds": [0.5]}, "| the table |", path)
    assert json.loads(path.read_text()) == {**context, "seconds": [0.5]}
    assert capsys.readouterr().out == "settings: seed 1, game pong\n\n| the table |\n"


def test_a_results_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EbuError, match=r"^--json .*directory$"):
        measurement.publish({}, {}, "", tmp_path)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (Settings(steps=(3, 1)), "--steps is 3, 1; give 2 or more"),
        (Settings(steps=()), "--steps is empty; give 2 or more"),
        (Settings(steps=(2,), num_envs=1), "--num-envs is 1; give 2 or more"),
    ],
)
def test_too_small_a_number_is_refused(settings: Settings, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        measurement.require_at_least(2, settings, "steps", "num_envs")
    assert str(refused.value) == complaint


def test_large_enough_numbers_are_taken() -> None:
    measurement.require_at_least(1, Settings(), "steps", "num_envs")
    measurement.require_at_least(2, Settings(steps=(2, 9)), "steps", "num_envs")


def test_a_place_for_results_is_checked_before(tmp_path: Path) -> None:
    measurement.require_writable(None)
    measurement.require_writable(tmp_path / "results.json")
    with pytest.raises(UsageError, match="no such folder"):
        measurement.require_writable(tmp_path / "missing" / "results.json")
    with pytest.raises(UsageError, match="no file can be written"):
        measurement.require_writable(tmp_path)


def test_what_is_compared_with_must_be_installed() -> None:
    measurement.require_installed("torch", "PyTorch")
    with pytest.raises(UsageError, match=r"^Nothing is not installed: pip install .*\[bench\]"):
        measurement.require_installed("no_such_module", "Nothing")
