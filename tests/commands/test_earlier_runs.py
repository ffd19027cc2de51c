"""A run of the version before agents became rows: 2,400 frames of Breakout with --distill.

It still evaluates, loads and distils; its training is resumed by the version that wrote it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import load_agent

ROOT = Path(__file__).parents[2]
EARLIER = ROOT / "tests/data/earlier_run"
# What that version computed for the states of `test_it_loads_with_the_same_values`.
VALUES = [
    [0.06379067897796631, 0.07320292294025421, 0.07499022781848907, 0.05374527350068092],
    [0.07516983151435852, 0.05984093248844147, 0.05820596590638161, 0.0800246000289917],
    [0.06206353008747101, 0.06890995800495148, 0.07008317112922668, 0.056510284543037415],
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "run"))


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_it_loads_with_the_same_values() -> None:
    states = np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8)
    agent = load_agent(EARLIER)
    assert agent.frames == 2400
    torch.testing.assert_close(agent.values(states), torch.tensor(VALUES), rtol=1e-4, atol=1e-5)
    assert load_agent(EARLIER, "best").frames == 1204
    assert load_agent(EARLIER / "students/2-2-2_3").outputs == "logits"


@pytest.mark.slow
def test_it_is_evaluated_and_distilled(run_dir: Path, tmp_path: Path) -> None:
    for directory in (run_dir, run_dir / "students/2-2-2_3"):
        scored = command("evaluate.py", directory, "--episodes", 1, "--threads", 1)
        assert scored.returncode == 0, scored.stderr
    flags = "--students 2-2-2/4 --seeds 1 --states 60 --updates 4 --games 1 --no-export --threads 1"
    flags += " --baseline-seeds 1 --num-envs 2 --rounds 2"
    distilled = command("distill.py", run_dir, "--out", tmp_path / "out", *flags.split())
    assert distilled.returncode == 0, distilled.stderr
    assert (tmp_path / "out/report.json").exists()


def test_resuming_it_is_refused_in_one_line(run_dir: Path) -> None:
    before = json.loads((run_dir / "config.json").read_text())
    refused = command("train.py", "--resume", run_dir)
    assert refused.returncode == 2
    assert "start a new run" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert json.loads((run_dir / "config.json").read_text()) == before
