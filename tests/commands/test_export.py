"""`export.py`: runs with the students of their training, and policies from elsewhere."""

import json
from pathlib import Path

import pytest
import torch

from ebu.commands.distilling.export import run_export
from ebu.commands.export import ExportConfig
from ebu.errors import UsageError
from ebu.run.cli import parse
from tests.agents.foreign.files import CleanPpo, sb3
from tests.commands.test_policies import scored
from tests.distillations import train


def export(*args: object) -> None:
    small = ["--states", "120", "--games", "2", "--num-envs", "6", "--threads", "1"]
    words = [*map(str, args), *small]
    run_export(parse(ExportConfig, words, prog="export.py", description=""))


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


def test_a_policy_from_elsewhere_is_exported_and_plays_as_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, out = sb3(tmp_path / "ppo.zip", CleanPpo(4, 2), 2), tmp_path / "out"
    export(path, "--game", "CartPole-v1", "--out", out)
    file = scored(out / "export" / "teacher.onnx")
    assert (file["game"], file["protocol"]) == ("CartPole-v1", "paper")
    assert file["returns"] == scored(path, "--game", "CartPole-v1")["returns"]


def test_what_is_no_network_is_not_exported(tmp_path: Path) -> None:
    typed = "tests.commands.test_policies:lean"
    flags = ("--game", "CartPole-v1", "--policy-outputs", "values", "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="cannot be exported: only single networks"):
        export(typed, *flags)
    assert not (tmp_path / "out").exists()
