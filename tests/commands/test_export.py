"""`export.py`: runs with the students of their training, and policies from elsewhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import load_agent
from agents.distillation.settings import Stopped
from agents.distillation.students import digest_of
from ebu.commands.distilling.export import run_export
from ebu.commands.export import ExportConfig
from ebu.commands.importing import ImportConfig, import_policy
from ebu.errors import UsageError
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.cli import parse
from ebu.run.directory import identity_of, read_config
from tests.agents.foreign.files import CleanPpo, sb3
from tests.commands.test_policies import scored
from tests.distillations import train, without_seconds


def export(*args: object, **options: Any) -> None:
    small = ["--states", "120", "--games", "2", "--num-envs", "6", "--threads", "1"]
    words = [*map(str, args), *small]
    run_export(parse(ExportConfig, words, prog="export.py", description=""), **options)


@pytest.mark.slow
def test_a_run_and_the_students_of_its_training_get_files_and_a_report(tmp_path: Path) -> None:
    flags = "--game CartPole-v1 --frames 200 --distill 2-2-2/4"
    run_dir, out = train(tmp_path / "run", flags), tmp_path / "out"
    export(run_dir, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert list(report["exports"]) == ["teacher", "2-2-2_4-kl-online"]
    kinds = [(row["kind"], row["name"], row["method"]) for row in report["rows"]]
    assert ("student", "2-2-2/4", "kl-online") in kinds
    assert ("int8", "2-2-2/4", "kl-online") in kinds
    # The files are policies themselves, and play the games of their agents.
    files = {name: out / "export" / f"{name}.onnx" for name in report["exports"]}
    assert scored(files["teacher"])["returns"] == report["teacher"]["evaluation"]["returns"]
    content = files["teacher"].read_bytes()
    files["teacher"].unlink()
    export(run_dir, "--out", out)
    assert files["teacher"].read_bytes() == content
    # A student is exported as any agent.
    export(run_dir / "students" / "2-2-2_4", "--out", tmp_path / "student")
    alone = (tmp_path / "student" / "export" / "teacher.onnx").read_bytes()
    assert len(alone) < len(content)


def measured(out: Path) -> dict[str, object]:
    """The report and the scores, without what depends on the clock."""
    scores = {path.name: json.loads(path.read_text()) for path in (out / "scores").iterdir()}
    report = json.loads((out / "report.json").read_text())
    return {"report": without_seconds(report), "scores": scores}


def test_a_run_that_was_trained_on_is_measured_again_however_often_it_is_stopped(
    tmp_path: Path,
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    flags = "--game CartPole-v1 --distill 2-2-2/4 --frames"
    train(run_dir, f"{flags} 200")
    export(run_dir, "--out", out)
    before = measured(out)
    train(run_dir, f"{flags} 300")
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 40 == 0

    for _ in range(50):
        try:
            export(run_dir, "--out", out, should_stop=should_stop)
            break
        except Stopped:
            # No figure of the earlier weights is reported in the meantime.
            if (out / "teacher.json").exists():
                report = json.loads((out / "report.json").read_text())
                assert report["teacher"]["frames"] == 300
                assert "teacher" not in report["exports"]
    assert asked > 40
    export(run_dir, "--out", tmp_path / "fresh")
    found = measured(out)
    assert found == measured(tmp_path / "fresh")
    student = "2-2-2_4-kl-online-seed0.json"
    weights = [each["scores"][student]["weights"] for each in (before, found)]  # type: ignore[index]
    assert weights[0] != weights[1]


def test_a_student_that_learnt_on_is_scored_again_where_its_teacher_has_not(
    tmp_path: Path,
) -> None:
    flags = "--game CartPole-v1 --frames 200 --distill 2-2-2/4"
    run_dir, out = train(tmp_path / "run", flags), tmp_path / "out"
    export(run_dir, "--out", out)
    other = train(tmp_path / "other", f"{flags} --seed 1")
    learnt = run_dir / "students" / "2-2-2_4"
    network = load_agent(other / "students" / "2-2-2_4").network
    (path,) = (learnt / "checkpoints").iterdir()
    checkpoint = load_latest(learnt / "checkpoints", state_only=True)
    assert checkpoint is not None
    state = {**checkpoint.state, "agent": {"learner": {"online": dict(network.state_dict())}}}
    run = identity_of(read_config(learnt))
    shutil.rmtree(path)
    save_checkpoint(learnt / "checkpoints", path.name, state, run=run, keep=1)
    export(run_dir, "--out", out)
    score = json.loads((out / "scores" / "2-2-2_4-kl-online-seed0.json").read_text())
    assert score["weights"] == digest_of(network)
    assert score["returns"] == scored(learnt)["returns"]
    report = json.loads((out / "report.json").read_text())
    assert report["exports"]["2-2-2_4-kl-online"]["weights"] == digest_of(network)


def test_an_agent_over_a_grid_is_exported_and_plays_as_its_file(tmp_path: Path) -> None:
    game = "tests.envs.tiny:TinyGrid-v0"
    run_dir = train(tmp_path / "run", f"--game {game} --network grid --frames 200")
    export(run_dir, "--out", tmp_path / "out", "--trust-env")
    file = scored(tmp_path / "out" / "export" / "teacher.onnx", "--game", game)
    assert file["returns"] == scored(run_dir, "--trust-env")["returns"]
    int8 = tmp_path / "out" / "export" / "teacher.int8.onnx"
    assert scored(int8, "--game", game)["games"] == 2


def test_a_policy_from_elsewhere_is_exported_and_plays_as_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, out = sb3(tmp_path / "ppo.zip", CleanPpo(4, 2), 2), tmp_path / "out"
    export(path, "--game", "CartPole-v1", "--out", out)
    file = scored(out / "export" / "teacher.onnx")
    assert (file["game"], file["protocol"]) == ("CartPole-v1", "paper")
    assert file["returns"] == scored(path, "--game", "CartPole-v1")["returns"]


@pytest.mark.parametrize("kind", ["function", "ONNX"])
def test_what_is_no_network_is_refused_before_its_flags_are_asked_for(
    kind: str, tmp_path: Path
) -> None:
    named, out = Path("tests.commands.test_policies:lean"), tmp_path / "out"
    if kind == "ONNX":
        named = tmp_path / "policy.onnx"
        named.write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be exported: only single networks"):
        export(named, "--out", out)
    with pytest.raises(UsageError, match="is no file to import: name a zip"):
        import_policy(ImportConfig(named, out))
    assert not out.exists()
