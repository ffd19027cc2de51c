"""The notebook runs top to bottom, as a kernel would run it: cell by cell in one namespace."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_run.ipynb"


def test_the_notebook_runs_and_its_agent_plays_better_than_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # committed without what one machine printed
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["finished"]
    assert names["agent_record"]["mean"] > 2 * names["random_record"]["mean"]
    assert len(names["evaluations"]) == 3
