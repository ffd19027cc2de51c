"""`train.py --init-from`: training starts with what another agent can do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents import load_agent
from agents.agent import policy_weights
from agents.foreign.flags import PolicyFlags
from ebu.commands.importing import ImportConfig, import_policy
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.commands.warm_start import initial_weights
from ebu.errors import UsageError
from ebu.run.checkpoint import load_latest
from tests.agents.foreign.files import CleanPpo, sb3
from tests.commands.test_earlier_runs import EARLIER
from tests.commands.test_policies import distilled
from tests.distillations import train


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of logits, of CartPole."""
    directory = tmp_path_factory.mktemp("student")
    teacher = train(directory / "teacher", "--game CartPole-v1 --frames 120")
    distilled(teacher, "--out", directory / "out", "--baselines", "--seeds", 1)
    return directory / "out" / "students" / "2-2-2_4-kl-seed0"


@pytest.mark.parametrize("agent", ["ebu", "ebu --noisy", "adaptive_ebu"])
def test_training_starts_with_a_students_actions(agent: str, student: Path, tmp_path: Path) -> None:
    flags = f"--game CartPole-v1 --agent {agent} --network 2-2-2/4 --init-from {student}"
    small = "--num-envs 2 --replay-capacity 300 --eval-every-frames 0 --updates-per-step 1"
    long = "--frames 200 --learning-starts 50 --threads 1 --device cpu"
    args = f"{flags} {small} {long} --run-dir {tmp_path}/run".split()
    trainer = build_trainer(parse_arguments(args))
    try:
        of_student = load_agent(student)
        started = load_agent(student)
        weights = policy_weights(trainer.agent.state_dict())
        first = {name: weight.clone() for name, weight in weights.items()}
        started.network.load_state_dict(first)
        stacks = torch.randn(16, 1, 4)
        temperature = of_student.config["settings"]["temperature"]
        torch.testing.assert_close(
            started.outputs_of(stacks), temperature * of_student.outputs_of(stacks)
        )
        assert trainer.run(200)
        trained = policy_weights(trainer.agent.state_dict())
    finally:
        trainer.close()
    assert any(not torch.equal(weight, first[name]) for name, weight in trained.items())
    # Resumed, it has the weights that it has learnt, not those that it began with.
    resumed = build_trainer(parse_arguments(["--resume", f"{tmp_path}/run"]))
    resumed.close()
    found = policy_weights(resumed.agent.state_dict())
    assert found.keys() == trained.keys()
    assert all(torch.equal(weight, trained[name]) for name, weight in found.items())


def test_a_student_trained_alongside_starts_with_values(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "--game CartPole-v1 --frames 200 --distill 2-2-2/4")
    source = run / "students" / "2-2-2_4"
    student, started = load_agent(source), load_agent(source)
    weights = initial_weights(source, "2-2-2/4", student.config["environment"])
    started.network.load_state_dict(weights)
    saved = load_latest(run / "checkpoints", state_only=True)
    assert saved is not None
    temperature = saved.state["distiller"]["temperature"]
    assert 0 < temperature < 1
    stacks = torch.randn(16, 1, 4)
    torch.testing.assert_close(started.outputs_of(stacks), temperature * student.outputs_of(stacks))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Agents of CartPole by what their outputs are."""
    directory = tmp_path_factory.mktemp("others")
    teacher = train(directory / "teacher", "--game CartPole-v1 --frames 120")
    methods = ("--baselines", "hard", "centred", "noisy", "hinton", "regression", "--mutual")
    distilled(teacher, "--out", directory / "out", *methods, "--seeds", 1)
    distilled(teacher, "--out", directory / "next", "--baselines", "--generations", 2)
    zipped = sb3(directory / "ppo.zip", CleanPpo(4, 2), 2)
    game = ("--game", "CartPole-v1")
    distilled(zipped, *game, "--out", directory / "of-ppo", "--baselines", "--temperature", 2)
    relu = {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}}
    imported = sb3(directory / "relu.zip", CleanPpo(4, 2), 2, **relu)
    import_policy(ImportConfig(imported, directory / "imported", PolicyFlags(game="CartPole-v1")))
    (of_next,) = (directory / "next" / "students").glob("*-kl-gen2-seed0")
    students = directory / "out" / "students"
    return {
        "run": teacher,
        "earlier": EARLIER / "students" / "2-2-2_3",
        "imported": directory / "imported",
        "of logits": directory / "of-ppo" / "students" / "2-2-2_4-kl-seed0",
        "generation": of_next,
        **{path.name.split("-")[-2]: path for path in students.glob("2-2-2_4-*")},
        "mutual": students / "2-2-2_4-kl+mutual1-seed0",
    }


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        *(("run", True), ("regression", True), ("mutual", True)),
        *(("hard", False), ("centred", False), ("noisy", False), ("hinton", False)),
        *(("of logits", False), ("generation", False), ("imported", False), ("earlier", False)),
    ],
)
def test_values_of_an_unknown_scale_are_left_as_they_are_with_a_warning(
    kind: str, known: bool, others: dict[str, Path], capsys: Any
) -> None:
    source = others[kind]
    own = load_agent(source)
    network = own.config["settings"]["network"]
    started = initial_weights(source, network, own.config["environment"])
    lines = capsys.readouterr().err.splitlines()
    assert ["unknown" in line for line in lines] == ([] if known else [True])
    if kind != "mutual":
        weights = own.network.state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in started.items())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--game CartPole-v1", "its network is 2-2-2/4, .* add --network 2-2-2/4"),
        ("--game Acrobot-v1 --network 2-2-2/4", "num actions is 2 there and 3 in this game"),
        ("--game CartPole-v1 --network 2-2-2/4 --quantiles 3", "are of another network"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(
    flags: str, said: str, student: Path, tmp_path: Path
) -> None:
    args = f"{flags} --init-from {student} --run-dir {tmp_path}/run --threads 1".split()
    with pytest.raises(UsageError, match=said):
        build_trainer(parse_arguments(args))
    assert not (tmp_path / "run").exists()
