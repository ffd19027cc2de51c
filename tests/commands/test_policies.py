"""Teachers from elsewhere on the command line: scored, distilled, imported, and what is refused."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import load_agent
from agents.distillation.settings import DistillConfig
from agents.foreign.flags import PolicyFlags
from ebu.commands import distill, evaluation, importing
from ebu.commands.distilling.run import Outcome, run
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.evaluation_record import as_table
from ebu.commands.importing import ImportConfig, import_policy
from ebu.commands.policies import load_policy
from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse
from tests.agents.foreign.files import CleanDqn, CleanDqnAtari, CleanPpo, clean_rl, sb3
from tests.distillations import FLAGS, train

CPU = torch.device("cpu")


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    """A PPO of Stable-Baselines3 for CartPole."""
    torch.manual_seed(0)
    return sb3(tmp_path / "ppo.zip", CleanPpo(4, 2), 2)


def scored(*args: object) -> dict[str, Any]:
    words = ["--episodes", "2", "--threads", "1", "--device", "cpu", *map(str, args)]
    return evaluation.run(parse(EvaluateConfig, words, prog="evaluate.py", description=""))


def distilled(*args: object) -> Outcome:
    (outcome,) = run(
        parse(DistillConfig, [str(args[0]), *FLAGS, *map(str, args[1:])], prog="", description="")
    )
    return outcome


def lean(stacks: np.ndarray) -> np.ndarray:
    """CartPole by the pole's angle."""
    angle = stacks[:, -1, 2]
    return np.stack([-angle, angle], axis=1)


def balance(stacks: np.ndarray) -> np.ndarray:
    """CartPole by the pole's angle and speed, and a little by the cart's: it never falls."""
    lean = stacks[:, -1] @ np.array([0.1, 0.3, 4.0, 1.0], dtype=np.float32)
    return np.stack([-lean, lean], axis=1)


def test_an_imported_agent_plays_the_games_of_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = clean_rl(tmp_path / "dqn.cleanrl_model", CleanDqn(4, 2), env_id="CartPole-v1")
    record = scored(path)
    assert (record["game"], record["from"]) == ("CartPole-v1", str(path))
    import_policy(ImportConfig(path, tmp_path / "run"))
    assert scored(tmp_path / "run")["returns"] == record["returns"]
    assert [each.name for each in tmp_path.glob("*.cleanrl_model*")] == [path.name]
    stacks = torch.randn(8, 1, 4)
    files = load_policy(path, PolicyFlags(), CPU).outputs_of(stacks)
    torch.testing.assert_close(load_agent(tmp_path / "run").outputs_of(stacks), files)
    # The same file again is no other agent; another one is.
    import_policy(ImportConfig(path, tmp_path / "run"))
    other = clean_rl(tmp_path / "other", CleanDqn(4, 2), env_id="CartPole-v1")
    with pytest.raises(UsageError, match="started with other settings: digest was"):
        import_policy(ImportConfig(other, tmp_path / "run"))


def test_the_command_that_an_import_prints_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clean_rl(tmp_path / "dqn.cleanrl_model", CleanDqn(4, 2), env_id="CartPole-v1")
    typed = ["import.py", path, "--game", "gymnasium:CartPole-v1", "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", [*map(str, typed)])
    assert importing.main() == 0
    _, _, words = capsys.readouterr().err.partition("evaluate.py ")
    assert scored(*shlex.split(words))["game"] == "gymnasium:CartPole-v1"


def test_a_policy_from_elsewhere_is_distilled_and_resumed(zipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = distilled(zipped, "--game", "CartPole-v1", "--out", out)
    student = load_agent(out / "students" / "2-2-2_4-kl-seed0")
    assert outcome.teacher["network"] == "Stable-Baselines3 PPO"
    assert student.config["settings"]["game"] == "CartPole-v1"
    assert student.outputs == "logits"
    games = outcome.teacher["evaluation"]["returns"]
    record = scored(zipped, "--game", "CartPole-v1")
    assert record["returns"] == games
    assert distilled(zipped, "--game", "CartPole-v1", "--out", out).students == outcome.students
    sb3(zipped, CleanPpo(4, 2), 2)
    with pytest.raises(UsageError, match="started with other settings: teacher_digests was"):
        distilled(zipped, "--game", "CartPole-v1", "--out", out)


def test_weights_of_cleanrl_and_then_their_onnx_file_are_distilled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = clean_rl(tmp_path / "dqn.cleanrl_model", CleanDqn(4, 2), env_id="CartPole-v1")
    returns = scored(weights)["returns"]
    path, kinds = weights, []
    for number in range(2):
        out = tmp_path / f"out{number}"
        outcome = distilled(path, "--export", "--baselines", "regression", "--out", out)
        kinds.append(outcome.teacher["network"])
        assert outcome.teacher["evaluation"]["returns"] == returns
        (chosen,) = outcome.config.best_of(outcome.students)
        student = scored(out / "export" / "2-2-2_4-kl.onnx")
        assert student["returns"] == chosen["evaluation"]["returns"]
        path = tmp_path / "out0" / "export" / "teacher.onnx"
    assert kinds == ["60-60-60/84", "ONNX file"]
    assert scored(path)["returns"] == returns
    # Outputs alone are known of a file: no gradients, no layers to compare with or to export.
    assert not (out / "export" / "teacher.onnx").exists()
    with pytest.raises(UsageError, match="kegnet needs gradients"):
        distilled(path, "--states-from", "kegnet", "--out", tmp_path / "kegnet")
    assert not (tmp_path / "kegnet" / "distill.json").exists()


def test_a_function_is_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    typed = f"{__name__}:lean"
    flags = ("--game", "CartPole-v1", "--policy-outputs", "values", "--baselines", "regression")
    outcome = distilled(typed, *flags, "--out", tmp_path / "out")
    assert outcome.teacher["network"] == "function"
    assert {s["outputs"] for s in outcome.students} == {"logits", "values"}
    games = outcome.teacher["evaluation"]["returns"]
    assert scored(typed, "--game", "CartPole-v1")["returns"] == games
    # What a function costs is not known, and no figure is made up for it.
    sizes = [outcome.teacher[name] for name in ("frames", "parameters", "multiply_adds")]
    assert sizes == [None, None, None]
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"from `{typed}`; 2 actions." in text
    assert "| teacher | – | – | – | – |" in text
    monkeypatch.setattr(distill, "tested_retention", lambda *_: 1.0)
    distill.announce_smallest(outcome.config, outcome.teacher, outcome.students[:1])
    assert " parameters, retains 95%" in capsys.readouterr().out
    record = scored(tmp_path / "out" / "students" / "2-2-2_4-kl-seed0")
    assert f"distilled from {typed}\n" in as_table(record)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `own_policy`, to be written; imported again by every command."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path / "own_policy.py"


ACT = "import numpy as np\n\ndef act(stacks):\n    {}\n"
CONSTANT = ACT.format("return np.zeros((len(stacks), 2)) + [0, {}]")


def of_module(out: Path) -> Outcome:
    sys.modules.pop("own_policy", None)
    game = ("--game", "CartPole-v1", "--policy-outputs", "values", "--temperature", 1)
    return distilled("own_policy:act", *game, "--baselines", "--seeds", 1, "--out", out)


def test_a_function_that_has_changed_is_another_teacher(module: Path, tmp_path: Path) -> None:
    module.write_text(CONSTANT.format(1))
    outcome = of_module(tmp_path / "out")
    assert of_module(tmp_path / "out").students == outcome.students
    module.write_text(CONSTANT.format(-1))
    with pytest.raises(UsageError, match="started with other settings: teacher_digests was"):
        of_module(tmp_path / "out")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return np.zeros((len(stacks), 3))", r"gives outputs of shape \(2, 3\)"),
        ("return np.zeros((1, 2))", r"gives outputs of shape \(1, 2\)"),
        ("raise SystemExit(3)", "own_policy:act failed: SystemExit: 3"),
        (
            "return np.zeros((len(stacks), 2))\nraise SystemExit('no')",
            "cannot be imported: SystemExit: no",
        ),
    ],
)
def test_a_function_that_is_no_policy_is_one_line_before_anything_is_written(
    body: str, said: str, module: Path, tmp_path: Path
) -> None:
    module.write_text(ACT.format(body))
    with pytest.raises(EbuError, match=said) as error:
        of_module(tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_action_set_follows_from_the_number_of_outputs(tmp_path: Path) -> None:
    for outputs, chosen in ((4, None), (18, "full")):
        path = clean_rl(tmp_path / f"{outputs}", CleanDqnAtari(outputs), env_id="ALE/Breakout-v5")
        agent = load_policy(path, PolicyFlags(), CPU)
        assert agent.config["settings"]["action_set"] == chosen
        assert agent.config["environment"]["num_actions"] == outputs
    record = scored(path, "--max-steps", 20)
    assert (record["game"], record["protocol"], record["capped_games"]) == ("breakout", "paper", 2)
    import_policy(ImportConfig(path, tmp_path / "run"))
    assert scored(tmp_path / "run", "--max-steps", 20)["returns"] == record["returns"]
    with pytest.raises(UsageError, match="has 18 outputs and breakout 4 actions here"):
        load_policy(path, PolicyFlags(action_set="minimal"), CPU)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "does not say what it plays: add --game"),
        ("--game pong", "has 2 outputs and pong 6 actions here"),
        ("--game pogn", "--game pogn: unknown game 'pogn'"),
        ("--game CartPole-v1 --protocol papr", "--protocol papr: choose one of"),
        ("--game CartPole-v1 --weights best", "--weights best is for runs"),
        ("--game CartPole-v1 --policy-outputs values", "gives logits: leave out --policy-outputs"),
        ("--game CartPole-v1 --unit-pixels", "--unit-pixels is for ONNX files"),
        ("--game CartPole-v1 --loss regression", "is a policy, which has no values to teach"),
        ("--game CartPole-v1 --hint 1", "hint compares layers, and .* has no three convolutions"),
        ("--game CartPole-v1 --states-from replay", "a policy from elsewhere has none"),
        ("--game CartPole-v1 --states-from noise", "makes images, and CartPole-v1 shows none"),
        ("--game CartPole-v1 --refine-labels", "--refine-labels shifts images"),
        ("--game CartPole-v1 --from-scratch 9", "trains as the teacher was trained"),
        ("--game CartPole-v1 --all-learners", "is not a run directory"),
        ("--game CartPole-v1 --students teacher", "has no network of its own here: name one"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(
    flags: str, said: str, zipped: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        distilled(zipped, *flags.split(), "--out", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_flags_of_policies_from_elsewhere_say_nothing_of_runs(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", "--game CartPole-v1 --frames 60")
    said = "--game is for policies from elsewhere, and .*run is a run directory"
    with pytest.raises(UsageError, match=said):
        distilled(run_dir, "--game", "pong", "--out", tmp_path / "out")
    with pytest.raises(UsageError, match=said):
        scored(run_dir, "--game", "pong")
    with pytest.raises(UsageError, match="is no file to import"):
        import_policy(ImportConfig(run_dir, tmp_path / "out"))


def test_weights_that_fit_no_network_are_not_imported(zipped: Path, tmp_path: Path) -> None:
    flags = PolicyFlags(game="CartPole-v1")
    with pytest.raises(UsageError, match="fits none of this project's networks"):
        import_policy(ImportConfig(zipped, tmp_path / "run", flags))
    assert not (tmp_path / "run").exists()


def test_a_file_may_not_have_a_module_imported(tmp_path: Path) -> None:
    path = clean_rl(tmp_path / "it", CleanDqn(6, 3), env_id="tests.envs.tiny:TinyNumbers-v0")
    with pytest.raises(UsageError, match="whose module's code would be run"):
        load_policy(path, PolicyFlags(), CPU)
    game = PolicyFlags(game="tests.envs.tiny:TinyNumbers-v0")
    assert load_policy(path, game, CPU).num_actions == 3
