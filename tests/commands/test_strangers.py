"""A run directory from a stranger: its modules are imported when trusted, and nothing is lost."""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from agents import load_agent
from ebu.commands import evaluation, study
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.reporting.runs import find_run_directories, read_runs
from ebu.commands.studying.committed import write_result
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from tests.checkpoints import reseal
from tests.distillations import GREY, NUMBERS, config_of, train
from tests.run_directories import write_run

FLAGS = (
    f"--game {NUMBERS} --frames 200 --eval-every-frames 100 --log-every-frames 50 --eval-episodes 2"
)
SPY = """
import pathlib
import tests.envs.tiny
pathlib.Path("imported").touch()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("strangers") / "run", FLAGS)


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def of_stranger(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run on an environment of a module in the working directory."""
    path = run_dir / "config.json"
    path.write_text(path.read_text().replace("tests.envs.tiny", "of_a_stranger"))
    for checkpoint in [*(run_dir / "checkpoints").iterdir(), *(run_dir / "best").iterdir()]:
        reseal(checkpoint, run=None)
    (tmp_path / "of_a_stranger.py").write_text(SPY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield run_dir
    sys.modules.pop("of_a_stranger", None)


def resume(run_dir: Path, *words: str) -> Any:
    return parse_arguments(["--resume", str(run_dir), *words])


def test_a_module_named_in_a_file_is_imported_only_if_trusted(
    of_stranger: Path, tmp_path: Path
) -> None:
    imported, before = tmp_path / "imported", list(sys.path)
    refused = pytest.raises(UsageError, match=r"of_a_stranger:TinyNumbers-v0, .*--trust-env")
    with refused as error:
        evaluation.run(EvaluateConfig(of_stranger))
    assert "\n" not in str(error.value)
    with refused:
        evaluation.run(EvaluateConfig(of_stranger, random=True))
    with refused:
        resume(of_stranger)
    assert load_agent(of_stranger).frames >= 200
    assert (imported.exists(), sys.path) == (False, before)
    evaluation.run(EvaluateConfig(of_stranger, episodes=1, threads=1, trust_env=True))
    assert imported.exists()
    # After everything else: a file of the working directory takes the place of no other module.
    assert sys.path == [*before, str(tmp_path)]
    resume(of_stranger, "--trust-env")


def test_a_typed_module_is_found_in_the_working_directory(of_stranger: Path) -> None:
    parse_arguments(["--game", "of_a_stranger:TinyNumbers-v0"])


def test_a_list_in_a_file_holds_no_flags(run_dir: Path) -> None:
    path = run_dir / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["distill"] = ["net3", "--trust-env"]
    path.write_text(json.dumps(config))
    with pytest.raises(EbuError, match=r"distill is .*restore it"):
        resume(run_dir)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("lock", "config.json")
    }


@pytest.mark.parametrize("kept", [("best",), ("evaluations.jsonl",), ("metrics.jsonl",)])
@pytest.mark.parametrize("emptied", [False, True])
def test_without_its_checkpoints_nothing_of_a_run_is_deleted(
    run_dir: Path, kept: tuple[str, ...], emptied: bool
) -> None:
    for name in {"best", "evaluations.jsonl", "metrics.jsonl"} - {*kept}:
        shutil.rmtree(run_dir / name) if name == "best" else (run_dir / name).unlink()
    shutil.rmtree(run_dir / "checkpoints")
    if emptied:
        (run_dir / "checkpoints").mkdir()
    before = contents(run_dir)
    args = ["--resume", str(run_dir), "--trust-env"]
    if emptied and kept == ("metrics.jsonl",):
        # As a run that was killed before its first checkpoint: it starts again.
        build_trainer(parse_arguments(args)).close()
        return
    with pytest.raises(UsageError, match=rf"{kept[0]}, but its checkpoints are gone: put") as error:
        build_trainer(parse_arguments(args))
    assert "\n" not in str(error.value)
    assert contents(run_dir) == before


def test_a_run_has_a_checkpoint_before_its_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        assert list((tmp_path / "run" / "checkpoints").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("ebu.commands.trainer.TrainingEvaluation.play", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", FLAGS)
    monkeypatch.undo()
    train(tmp_path / "run", FLAGS)


def test_a_checkpoint_of_another_run_is_refused_by_training_and_evaluation(
    run_dir: Path, tmp_path: Path
) -> None:
    other = train(tmp_path / "other", f"{FLAGS} --seed 1 --frames 240")
    newest = max((other / "checkpoints").iterdir())
    shutil.copytree(newest, run_dir / "checkpoints" / newest.name)
    reading = pytest.raises(EbuError, match=r"another run than config.json .seed was 1, is 0")
    with reading:
        load_agent(run_dir)
    with reading:
        build_trainer(resume(run_dir, "--trust-env"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"settings": {"seed": NaN}, "environment": {}}'),
        ("config.json", '{"settings": {"seed": 1e400}, "environment": {}}'),
        ("config.json", '{"settings": {"game": [], "seed": true}, "environment": {}}'),
        ("metrics.jsonl", '{"frames": 99999999999999999999}\n'),
        ("metrics.jsonl", '{"frames": 1, "train/return_last_100_games": "x"}\n'),
        ("metrics.jsonl", "[1]\n"),
        ("evaluations.jsonl", '{"frames": 1, "mean": [], "games": 1, "interval_95": null}\n'),
        ("evaluation.json", '{"policy": "agent", "weights": "final", "trained_frames": "many"}'),
        ("evaluation.json", "7"),
        ("provenance.json", "{}"),
    ],
)
def test_a_damaged_run_is_left_out_of_a_report_and_not_the_report_out(
    tmp_path: Path, file: str, content: str
) -> None:
    write_run(tmp_path, "pong", "ebu", 0, 1.0)
    score = None if file.startswith("evaluations") else 2.0
    (write_run(tmp_path, "pong", "ebu", 1, score) / file).write_text(content)
    runs, curves, damaged = read_runs(find_run_directories([tmp_path]))
    assert [run.seed for run in runs][:1] == [0]
    if file != "provenance.json":
        assert len(runs) == len(curves) == len(damaged) == 1
        assert "\n" not in damaged[0]


def test_a_teacher_is_trusted_too(run_dir: Path, tmp_path: Path) -> None:
    from ebu.commands.distilling.run import run

    grey = train(tmp_path / "grey", f"--game {GREY} --network 3-3-3/6 --frames 64")
    config = config_of(grey, tmp_path / "out", "--no-trust-env")
    with pytest.raises(UsageError, match="--trust-env"):
        run(config)


@pytest.mark.parametrize("place", ["out/runs/a.log", "out/runs/a.processes.jsonl", "results/a"])
@pytest.mark.parametrize("pipe", [False, True])
def test_a_study_writes_to_nothing_outside_of_its_directories(
    place: str, pipe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("out/runs", "results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside").write_text("mine")
    os.mkfifo(tmp_path / place) if pipe else (tmp_path / place).symlink_to(tmp_path / "outside")
    words = ["--games", NUMBERS, "--jobs", 0, "--out", tmp_path / "out"]
    words += ["--results", tmp_path / "results"]
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words)])
    with pytest.raises(EbuError, match=r"is refused: .*(?:link out|no regular file)") as error:
        study.main()
    assert "\n" not in str(error.value)
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("times", [(1.0, 3.5), (1.0, math.nan), (-1e300, 1e300), (b"\xff\xff",)])
def test_wall_times_of_a_damaged_log_are_not_known(times: Any, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, "pong", "ebu", 0, 1.0)
    with (run_dir / "events.out.tfevents.1").open("wb") as log:
        records = RecordWriter(log)
        for time in times:
            known = isinstance(time, float)
            records.write(Event(wall_time=time).SerializeToString() if known else time)
    write_result(run_dir, tmp_path / "result", 30)
    provenance = json.loads((tmp_path / "result/provenance.json").read_text())
    assert provenance["train_seconds"] == (2.5 if times == (1.0, 3.5) else None)
