"""Commands that messages name work where they are pasted: with spaces, in any directory."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ebu.run.hints import (
    PROJECT,
    install_command,
    program_command,
    program_name,
    tensorboard_command,
)

TRAIN = [
    *(sys.executable, str(PROJECT / "train.py"), "--game", "CartPole-v1", "--num-envs", "2"),
    *("--replay-capacity", "500", "--learning-starts", "100", "--batch-size", "16"),
    *("--network", "net3", "--updates-per-step", "0.1", "--eval-episodes", "1", "--threads", "1"),
    *("--device", "cpu", "--run-dir", "a run/it's"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "my experiments"
    directory.mkdir()
    return directory


def run(command: str | list[str], place: Path) -> str:
    """What a command that ends well says."""
    ended = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def hints(said: str) -> list[str]:
    return re.findall(r" with: (.*)$", said, re.MULTILINE)


@pytest.mark.slow
def test_what_train_prints_can_be_pasted(place: Path) -> None:
    command = [*TRAIN, "--frames", "240", "--distill", "4-4-4/8"]
    watch, *scoring = hints(run(command, place))
    assert "These tags are in a run/it's" in run(f"{watch} --inspect", place)
    assert len(scoring) >= 2
    for hint in scoring:
        assert "CartPole-v1" in run(f"{hint} --episodes 1 --threads 1", place)
    (further,) = [hint for hint in hints(run(command, place)) if "--resume" in hint]
    assert "done" in run(further, place)


def test_messages_install_for_the_python_that_runs() -> None:
    bare = re.compile(r"^[^#\n]*(?<!-m )\bpip3? install", re.MULTILINE)
    for package in ("ebu", "agents", "envs", "benchmarks", "studies"):
        for source in (PROJECT / package).rglob("*.py"):
            assert not bare.search(source.read_text(encoding="utf-8")), source


def test_paths_are_shown_from_the_working_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for path in (Path("runs/a b"), place / "runs" / "a b"):
        assert tensorboard_command(path).endswith("--logdir 'runs/a b'")
    *_, constraints, _, editable = shlex.split(install_command("export"))
    assert Path(constraints).is_file()
    assert (Path(editable.removesuffix("[export]")) / "pyproject.toml").is_file()
    outside = shlex.split(program_command("evaluate.py", place.parent / "elsewhere"))
    assert outside[1:] == [str(PROJECT / "evaluate.py"), str(place.parent / "elsewhere")]
    monkeypatch.setattr(sys, "executable", str(place / "venv 1" / "bin" / "python"))
    monkeypatch.chdir(PROJECT)
    assert program_command("study.py", "--seeds", 3).endswith("python' study.py --seeds 3")
    monkeypatch.setattr(sys, "executable", str(PROJECT / ".venv" / "bin" / "python"))
    assert install_command("export") == (
        ".venv/bin/python -m pip install -c constraints.txt -e '.[export]'"
    )


@pytest.mark.parametrize("named", ["-run", "-a/../-run", "link/../run", "../run", "a/run", "--"])
def test_a_path_leads_where_the_program_found_it(
    named: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for directory in ("-a", "a", "other/one"):
        Path(directory).mkdir(parents=True)
    Path("link").symlink_to("other/one")
    path = Path(named)
    path.mkdir()
    for given in (path, place / path):
        shown = shlex.split(program_command("evaluate.py", given))[-1]
        assert Path(shown).samefile(given)
        assert not shown.startswith("-")


def test_hints_name_the_installed_commands_where_there_is_no_checkout(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = place / "bin"
    commands.mkdir()
    (commands / "ebu-study").touch(mode=0o755)
    monkeypatch.setattr("ebu.run.hints.PROJECT", place)
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    monkeypatch.chdir(place)
    assert program_name("train.py --agent dqn") == "ebu-train --agent dqn"
    assert program_command("study.py", "--seeds", 3) == "bin/ebu-study --seeds 3"
    required = [
        *("torch>=2.10", 'onnx>=1.19; extra == "export"', "onnxscript >= 0.6 ; extra == 'export'"),
        *('ray>=2.40; extra == "cluster"', 'onnx>=1; extra == "exports"'),
    ]
    monkeypatch.setattr("ebu.run.hints.requires", {"ebu": required}.get)
    assert install_command("export") == (
        "bin/python -m pip install 'onnx>=1.19' 'onnxscript >= 0.6'"
    )
    monkeypatch.setenv("PATH", str(commands))
    assert program_command("study.py", "--seeds", 3) == "ebu-study --seeds 3"


def test_paths_are_shown_as_they_are_where_the_working_directory_is_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    place.rmdir()
    assert program_command("train.py", Path("a run")).endswith("train.py 'a run'")
