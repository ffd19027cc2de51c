"""The worked example of distillation on CartPole, as the page prints it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ebu.statistics import mean_interval

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "distillation_teachers.md"


@pytest.mark.slow
def test_the_example_has_students_that_balance_and_some_that_do_not(tmp_path: Path) -> None:
    section = PAGE.read_text().partition("## An example: CartPole")[2].partition("\n## ")[0]
    commands = re.findall(r"^    \.venv/bin/python (.+)$", section, flags=re.M)
    assert [command.split()[0] for command in commands] == ["train.py", "distill.py"]
    for command in commands:
        program, *words = shlex.split(command)
        subprocess.run(
            [sys.executable, str(ROOT / program), *words, "--threads", "1"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=900,
        )
    report = json.loads((tmp_path / "runs" / "cartpole-students" / "report.json").read_text())
    assert not [line for line in report["warnings"] if "teacher" in line]
    assert report["teacher"]["evaluation"]["mean"] > 5 * report["teacher"]["random"]["mean"]
    students = [row for row in report["rows"] if row["kind"] == "student"]
    ((low, high),) = (
        row["retention_95"] for row in students if row["name"] == "16-16-16/32" and row["chosen"]
    )
    assert low > 0.9
    assert high - low < 0.1
    # Of these very students, in the same games: 1-1-1/1 balances by luck, if at all.
    returns = [
        [row["evaluation"]["returns"] for row in students if row["name"] == name and chosen(row)]
        for name, chosen in (
            ("16-16-16/32", lambda row: row["chosen"]),
            ("1-1-1/1", lambda row: True),
        )
    ]
    of_chosen, of_least = (np.mean(each, axis=0) for each in returns)
    lowest_gap, _ = mean_interval(of_chosen - of_least) or (0.0, 0.0)
    assert lowest_gap > 0
