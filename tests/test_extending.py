"""The example of a new agent in docs/extending.md runs as it stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE, CHANGE = re.findall(
    r"```(?:python agents/expected_sarsa\.py|diff)\n(.*?)```",
    (ROOT / "docs/extending.md").read_text(),
    re.S,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example's file and change."""
    project = tmp_path_factory.mktemp("project")
    for package in ("ebu", "agents", "envs"):
        shutil.copytree(ROOT / package, project / package)
    shutil.copy(ROOT / "train.py", project)
    (project / "agents/expected_sarsa.py").write_text(MODULE)
    subprocess.run(["git", "apply"], cwd=project, input=CHANGE, text=True, check=True)
    return project


def train(project: Path, flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", "--agent", "expected_sarsa", *flags.split()]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_the_example_is_short() -> None:
    registered = re.findall(r"^\+[^+]", CHANGE, re.M)
    assert len(MODULE.splitlines()) + len(registered) <= 45


def test_the_example_trains_and_resumes(project: Path) -> None:
    flags = "--policy-epsilon 0.05 --game CartPole-v1 --num-envs 2 --threads 1 --device cpu "
    flags += "--learning-starts 100 --eval-every-frames 0 --updates-per-step 0.25 --run-dir run "
    for frames in (300, 600):
        result = train(project, f"{flags} --frames {frames}")
        assert result.returncode == 0, result.stderr
    assert "up to frame 301" in result.stderr


def test_the_example_refuses_what_does_not_fit(project: Path) -> None:
    result = train(project, "--policy-epsilon 2")
    assert result.returncode == 2
    assert "--policy-epsilon must be between 0 and 1" in result.stderr
