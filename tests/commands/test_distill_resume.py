"""`distill.py` stopped, killed and started again: nothing is lost, nothing is made twice."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents import load_agent
from agents.distillation.deploy import deployment
from agents.distillation.records import chosen
from agents.distillation.settings import Stopped
from agents.distillation.trainer import StudentTrainer
from ebu import evaluation
from ebu.errors import EbuError, UsageError
from tests.distillations import FLAGS, NUMBERS, contents, distilled, scalars, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole distillation with its files, not to be changed."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("exported") / "out"
    distilled(teacher, out, "--export")
    return out


def test_a_teacher_in_students_and_a_report_out(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    rows = {(row["name"], row["kind"], row["method"], row["seed"]) for row in report["rows"]}
    assert rows >= {
        ("teacher", "teacher", None, None),
        ("2-2-2/4", "student", "kl", 0),
        ("2-2-2/4", "student", "kl", 1),
        ("2-2-2/4", "baseline", "hard", 0),
        ("teacher", "int8", None, None),
    }
    assert report["teacher"]["states"]["source"] == "play"
    assert {"report.md", "pareto.png"} <= {path.name for path in exported.iterdir()}
    assert {path.name for path in (exported / "export").glob("*.onnx")} == {
        *("teacher.onnx", "teacher.int8.onnx"),
        *("2-2-2_4-kl.onnx", "2-2-2_4-kl.int8.onnx"),
    }
    # The student is a run directory like any other, and TensorBoard finds its logs.
    student = exported / "students" / "2-2-2_4-kl-seed1"
    assert load_agent(student).outputs == "logits"
    logged = scalars(student)
    assert [step for step, _ in logged["train/kl"]] == [2, 4]
    assert set(logged) >= {"held_out/agreement", "score/mean"}


def test_everything_finished_is_found_again(
    exported: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(exported)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("this was finished")

    for owner, name in (
        (StudentTrainer, "_update"),
        (deployment, "latencies"),
        (evaluation, "evaluate"),
    ):
        monkeypatch.setattr(owner, name, never)
    monkeypatch.setattr("agents.distillation.pipeline.collect", never)
    distilled(teacher, exported, "--export")
    assert contents(exported) == before


def test_a_report_without_an_export_says_which_file_is_lost_and_how_to_mend_it(
    exported: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / "export" / "2-2-2_4-kl.onnx").unlink()
    lost = "**Warning:** export/2-2-2_4-kl.onnx is lost: run the same command again"
    distilled(teacher, out)
    assert lost in (out / "report.md").read_text()
    # Stopped before the export, too.
    with pytest.raises(Stopped):
        distilled(teacher, out, "--export", "--games", 3, should_stop=lambda: True)
    assert lost in (out / "report.md").read_text()
    distilled(teacher, out, "--export", "--games", 3)
    assert "is lost" not in (out / "report.md").read_text()


def test_files_are_made_again_only_where_another_student_is_chosen(
    exported: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    results = [out / "students" / f"2-2-2_4-kl-seed{seed}" / "result.json" for seed in range(2)]
    records = [json.loads(path.read_text()) for path in results]
    last = chosen(records)["seed"]
    records[1 - last]["held_out"]["loss"] = 0.0
    results[1 - last].write_text(json.dumps(records[1 - last]))
    seeds = []

    def deploy(directory: Path, agents: dict[str, Any], *_: Any, **__: Any) -> None:
        seeds.append({name: agent.config["settings"]["seed"] for name, agent in agents.items()})

    monkeypatch.setattr(deployment, "deploy", deploy)
    distilled(teacher, out, "--export")
    assert seeds == [{"teacher": 0, "2-2-2_4-kl": 1 - last}]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bits(
    teacher: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = [*FLAGS, "--checkpoint-minutes", "0.0001"]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.killed_distillation", "41", "--"),
            *(str(teacher), "--out", str(out), *flags),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert int(ended.stdout.split()[-2]) >= 3
    assert contents(out) == contents(whole)


STUDENT = "students/2-2-2_4-kl-seed0"


@pytest.mark.parametrize(
    ("damaged", "how"),
    [
        (f"{STUDENT}/result.json", "cut"),
        (f"{STUDENT}/config.json", "cut"),
        (f"{STUDENT}/checkpoints/frames-000000000200/state.safetensors", "cut"),
        (f"{STUDENT}/checkpoints", "lost"),
        ("states/round-0/states/frames.zst", "cut"),
        ("scores/teacher.json", "cut"),
    ],
)
def test_what_is_damaged_is_named_and_made_again_when_the_advice_is_followed(
    damaged: str, how: str, teacher: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = out / damaged
    if how == "lost":
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(EbuError, match="put back a copy, or delete") as error:
        distilled(teacher, out)
    assert "\n" not in str(error.value)
    named = Path(
        next(word for word in str(error.value).split() if word.startswith("/")).rstrip(",")
    )
    assert out in named.parents
    if named.is_dir():
        shutil.rmtree(named)
    else:
        named.unlink()
    distilled(teacher, out)
    assert contents(out) == contents(whole)


def test_told_to_stop_it_reports_what_there_is(teacher: Path, whole: Path, tmp_path: Path) -> None:
    stops, asked = [], 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 60 == 0

    while True:
        try:
            distilled(teacher, tmp_path, should_stop=should_stop)
            break
        except Stopped:
            assert (tmp_path / "report.md").exists() == (tmp_path / "teacher.json").exists()
            stops.append((tmp_path / "report.md").exists())
    assert {True, False} == set(stops)
    assert contents(tmp_path) == contents(whole)


def test_more_seeds_are_added_to_those_there_are(
    teacher: Path, whole: Path, tmp_path: Path
) -> None:
    distilled(teacher, tmp_path, "--seeds", 1, "--baselines")
    distilled(teacher, tmp_path, "--seeds", 2)
    assert contents(tmp_path / "students") == contents(whole / "students")
    with pytest.raises(UsageError, match=r"seeds was 2, is 1 \(may only grow\)"):
        distilled(teacher, tmp_path, "--seeds", 1)


def test_what_was_left_automatic_is_kept_or_changes_with_a_warning(
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def resumed_with(cores: int, *, stop: bool = False) -> tuple[dict[str, Any], list[str]]:
        """What is recorded then, and the warnings that the machine differs."""
        monkeypatch.setattr("ebu.run.machine.all_cores", lambda: cores)
        monkeypatch.setattr("ebu.run.machine.has_bfloat16", lambda device: False)
        flags = ("--seeds", 1, "--threads", 0, "--device", "auto", "--precision", "auto")
        with pytest.raises(Stopped) if stop else contextlib.nullcontext():
            distilled(
                teacher, out, *flags, should_stop=lambda: stop and (out / "students").exists()
            )
        config = json.loads((out / "config.json").read_text())
        assert sorted(config["automatic"]) == ["device", "precision", "threads"]
        recorded = {name: config["settings"][name] for name in config["automatic"]}
        warnings = [line for line in capsys.readouterr().err.splitlines() if " here: " in line]
        return recorded, [line.partition(":")[2].partition(":")[0].strip() for line in warnings]

    two = {"device": "cpu", "threads": 2, "precision": "float32"}
    assert resumed_with(3, stop=True) == (two, [])
    assert resumed_with(9, stop=True) == (two, [])
    # From a machine with a GPU.
    config = json.loads((out / "config.json").read_text())
    config["settings"]["device"] = "cuda"
    (out / "config.json").write_text(json.dumps(config))
    one = {**two, "threads": 1}
    assert resumed_with(1) == (one, ["device was cuda, is cpu here", "threads was 2, is 1 here"])
    assert (out / "report.md").exists()
    assert resumed_with(1) == (one, [])


def test_chosen_threads_are_a_setting_like_others(
    teacher: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(UsageError, match="threads was 1, is 2"):
        distilled(teacher, tmp_path / "out", "--threads", 2)
    distilled(teacher, tmp_path / "out", "--threads", 0)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_teacher_that_was_trained_on_is_refused(tmp_path: Path) -> None:
    run_dir, flags = tmp_path / "run", f"--game {NUMBERS} --network 3-3-3/6 --frames"
    train(run_dir, f"{flags} 200")
    words = ("--seeds", 1, "--baselines")
    distilled(run_dir, tmp_path / "out", *words)
    distilled(run_dir, tmp_path / "out", *words)
    train(run_dir, f"{flags} 300")
    with pytest.raises(UsageError, match=r"has other weights than when .* choose another --out"):
        distilled(run_dir, tmp_path / "out", *words)
    # Of what else differs the list is given.
    with pytest.raises(UsageError, match="updates was 4, is 5"):
        distilled(run_dir, tmp_path / "out", *words, "--updates", 5)


def test_another_working_directory_and_other_paths_continue_it(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    place = tmp_path / "place"
    (place / "below").mkdir(parents=True)
    shutil.copytree(teacher, place / "teacher")
    monkeypatch.chdir(place)
    distilled(Path("teacher"), Path("out"), "--seeds", 1, "--baselines")
    monkeypatch.chdir(place / "below")
    distilled(Path("../teacher"), Path("../out"), "--seeds", 1, "--baselines")
    # All moved together, too.
    monkeypatch.chdir(tmp_path)
    place.rename("moved")
    outcome = distilled(Path("moved/teacher"), tmp_path / "moved" / "out", "--seeds", 2)
    assert len(outcome.students) == 3
    assert contents(tmp_path / "moved" / "out" / "students").keys() == (
        contents(whole / "students").keys()
    )
    shutil.copytree(teacher, "other")
    with pytest.raises(UsageError, match=r"run_dirs_from_out was .*teacher.*, is .*other"):
        distilled(Path("other"), Path("moved/out"))


def test_a_distillation_that_recorded_typed_paths_alone_is_continued(
    teacher: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in ("run_dirs_from_out", "states_from_out"):
        del config["settings"][name]
    for name in ("retention_test", "unshifted_labels", "kegnet_samples"):
        del config["settings"][name]
    del config["automatic"]
    config["settings"]["games"] = None
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    distilled(teacher, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_with_more_games_all_is_scored_again_and_nothing_trained(
    exported: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    monkeypatch.setattr(StudentTrainer, "_update", None)
    deployed: list[Any] = []
    monkeypatch.setattr(deployment, "deploy", lambda *given, **_: deployed.append(given))
    config = json.loads((out / "config.json").read_text())
    config["settings"]["run_dirs_from_out"] = [os.path.relpath(teacher, out)]
    (out / "config.json").write_text(json.dumps(config))
    outcome = distilled(teacher, out, "--export", "--games", 3)
    scores = [outcome.teacher["evaluation"], outcome.teacher["random"]]
    scores += [outcome.teacher["constant"]["evaluation"]]
    scores += [student["evaluation"] for student in outcome.students]
    assert {score["games"] for score in scores} == {3}
    # So are the int8 files.
    ((_, agents, _, score),) = deployed
    assert score(tmp_path / "int8.json", agents["teacher"].choose)["games"] == 3
    with pytest.raises(UsageError, match=r"games was 3, is 2 \(may only grow\)"):
        distilled(teacher, out, "--export", "--games", 2)


def test_a_full_disk_is_one_line_and_costs_nothing_finished(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 25 == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    failures: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        while len(failures) < 20:
            try:
                distilled(teacher, tmp_path)
                break
            except EbuError as error:
                failures.append(str(error))
    assert 2 <= len(failures) < 20
    assert all("No space left on device" in line and "\n" not in line for line in failures)
    assert contents(tmp_path) == contents(whole)
