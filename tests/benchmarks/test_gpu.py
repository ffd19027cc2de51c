"""The one command for a machine with a GPU: all parts, small, without one; and parts that fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from ebu.errors import EbuError, UsageError

CONTEXT: dict[str, Any] = {"machine": {"gpu": "a GPU", "cpu": "a CPU"}, "settings": {"seed": 0}}
WRITE_RESULTS = """
import json, sys
from pathlib import Path
print("seed 0\\n\\n| the table |")
figures = {"machine": {}, "versions": {}, "flags": sys.argv[1:-2]}
Path(sys.argv[-1]).write_text(json.dumps(figures))
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that take no time in the place of the benchmarks."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "works": WRITE_RESULTS,
        "fails": "import sys; print('on my way', file=sys.stderr); sys.exit('error: not today')",
        "hangs": "import time; time.sleep(600)",
    }.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    """Half a minute: every benchmark in processes of its own."""
    path = tmp_path / "results.json"
    flags = ["--device", "cpu", "--num-envs", "2", "--threads", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *flags],
        cwd=gpu.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    results = {name: part["results"] for name, part in report["parts"].items()}
    # Without a GPU there are no graphs.
    assert all(each["bitwise"] and each["within"] for each in results["parity"]["parity"])
    pieces = results["pieces"]["pieces"]
    of_one = [each for each in pieces if each["learners"] == 1]
    of_two = [each for each in pieces if each["learners"] == 2]
    assert [each["piece"] for each in of_one[: len(of_two)]] == [each["piece"] for each in of_two]
    assert of_one[0]["over_one"] == 1
    assert of_two[0]["over_one"] == of_two[0]["microseconds"] / of_one[0]["microseconds"]
    assert of_two[0]["arithmetic_microseconds"] == 2 * of_one[0]["arithmetic_microseconds"] > 0
    train = results["breakout at 1 updates per step"]
    shares = train["stages"]["dqn, N=2"]["shares"]
    whole = {"acting", "sending", "learning", "emulator_wait", "storing", "rest"}
    assert sum(shares[stage] for stage in whole) == pytest.approx(1)
    assert train["speeds"]["dqn, N=2"]["of_limit"]["median"] == pytest.approx(
        train["speeds"]["dqn, N=2"]["frames_per_second"]["median"]
        / train["limits"]["float32"]["frames_per_second"]["median"]
    )
    tables = path.with_suffix(".md").read_text()
    assert tables.strip() == done.stdout.strip()
    assert tables.count("\n## ") == len(results) == 6
    for heading in ("| append |", "| native |", "| dqn | float32 | yes |", "| dqn, N=2 |"):
        assert heading in tables


@pytest.mark.usefixtures("scripts")
def test_a_part_that_fails_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    parts = [
        gpu.Part("first", 1, "fails --seed 0"),
        gpu.Part("second", 1, "works --seed 1"),
        gpu.Part("third", 1, "works", rounds=True),
    ]
    with pytest.raises(EbuError, match=r"^failed: first; all else is in .*gpu\.json$"):
        gpu.run_parts(parts, CONTEXT, 1.0, path)
    report = json.loads(path.read_text())
    assert {key: report[key] for key in CONTEXT} == CONTEXT
    outcome = report["parts"]
    assert outcome["first"]["error"] == "error: not today"
    assert outcome["second"]["command"] == "python -m benchmarks.works --seed 1"
    # Said once, for all: neither the machine nor the versions.
    assert outcome["second"]["results"] == {"flags": ["--seed", "1"]}
    flag, minutes = outcome["third"]["results"]["flags"]
    assert flag == "--minutes"
    assert 0.5 < float(minutes) < 1.0  # all that the others left
    tables = path.with_suffix(".md").read_text()
    assert tables.startswith("# Benchmarks on a GPU\n")
    assert (
        "## first\n\n    python -m benchmarks.fails --seed 0\n\nfailed: error: not today" in tables
    )
    assert tables.count("| the table |") == 2
    assert "1/3  first: error: not today" in capsys.readouterr().err


@pytest.mark.usefixtures("scripts")
def test_a_part_is_stopped_when_its_time_is_up() -> None:
    entry, tables = gpu.run_part(gpu.Part("slow", 1, "hangs"), 0.5)
    assert entry["error"] == "not done after 0 s"
    assert 0.5 <= entry["seconds"] < 60
    assert tables == ""


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(UsageError, match=r"^there is no CUDA device here; --device cpu tries"):
        gpu.main()


def test_all_parts_understand_their_flags() -> None:
    """On the machine with the GPU a flag that is wrong would cost a part."""
    import importlib

    from ebu.run.cli import parse

    parts = gpu.parts_of(gpu.Settings(threads=16))
    assert len({part.name for part in parts}) == len(parts) == 11
    for part in parts:
        benchmark, *flags = part.command.split()
        flags += ["--minutes", "1.5"] if part.rounds else []
        settings = importlib.import_module(f"benchmarks.{benchmark}").Settings
        parse(settings, flags, prog=benchmark, description="")
