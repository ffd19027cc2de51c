"""All benchmarks of a GPU in one command: flags, failures, time limits."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse

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


@pytest.mark.usefixtures("scripts")
def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
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
    # Machine and versions are reported once, for all parts.
    assert outcome["second"]["results"] == {"flags": ["--seed", "1"]}
    flag, minutes = outcome["third"]["results"]["flags"]
    assert flag == "--minutes"
    assert 0.5 < float(minutes) < 1.0  # all that the others left
    tables = path.with_suffix(".md").read_text()
    failed = "## first\n\n    python -m benchmarks.fails --seed 0\n\nfailed: error: not today"
    assert failed in tables
    assert tables.count("| the table |") == 2


@pytest.mark.usefixtures("scripts")
def test_a_part_is_stopped_when_its_time_is_up() -> None:
    entry, tables = gpu.run_part(gpu.Part("slow", 1, "hangs"), 0.5)
    assert entry["error"] == "not done after 0 s"
    assert 0.5 <= entry["seconds"] < 60
    assert tables == ""


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(UsageError, match=r"^there is no CUDA device here"):
        gpu.main()


def test_all_parts_understand_their_flags() -> None:
    """On the machine with the GPU a flag that is wrong would cost a part."""
    parts = gpu.parts_of(gpu.Settings(threads=16))
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        benchmark, *flags = part.command.split()
        flags += ["--minutes", "1.5"] if part.rounds else []
        settings = importlib.import_module(f"benchmarks.{benchmark}").Settings
        parse(settings, flags, prog=benchmark, description="")
