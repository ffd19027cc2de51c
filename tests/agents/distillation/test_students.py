"""Students: their sizes, what their names rebuild, and the directories that hold them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents import TrainedAgent, load_agent
from agents.architectures import architecture, check_student
from agents.distillation import students
from agents.distillation.students import (
    Student,
    build,
    multiply_adds,
    num_parameters,
    save_student,
    student_of,
)
from agents.trained import Outputs
from ebu.errors import EbuError, UsageError
from ebu.run.directory import read_config, write_config
from tests.agents.distillation.small_pipelines import rng_of, teacher_of
from tests.made_up import assert_are_best

needs_tensorly = pytest.mark.skipif(
    importlib.util.find_spec("tensorly") is None, reason="tensorly, the extra factorize, is missing"
)


def nature_of(network: str = "nature") -> TrainedAgent:
    """An agent with random weights that plays Breakout."""
    return teacher_of(
        network=network,
        num_actions=4,
        stack=4,
        frame_shape=(84, 84),
        game="breakout",
        epsilon_end=0.1,
        random_start_actions=30,
    )


def states_of(count: int) -> Tensor:
    return torch.randint(256, (count, 4, 84, 84), dtype=torch.uint8, generator=rng_of(1))


def save(directory: Path, student: Student, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "teacher": nature_of(),
        "teacher_dir": Path("runs/breakout"),
        "seed": 5,
        "settings": {"kl": 1.0},
    }
    save_student(directory, student, **{**arguments, **changes})


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [
        ("nature", 1_693_362, 9_352_192),
        ("net1", 427_874, 3_159_552),
        ("net2", 113_346, 2_185_728),
        ("net3", 61_954, 2_134_400),
        ("16-32-32/256", 427_874, 3_159_552),
        # 97.3 % of the parameters, and 16.3 % of them with 56 % of the work.
        ("nature@tucker=16,32,32,32", 1_647_794, 6_643_712),
        ("nature@tucker=16,32,32,32,svd=64", 275_634, 5_271_552),
    ],
)
def test_the_published_sizes(name: str, parameters: int, operations: int) -> None:
    student = build(name, 18, generator=rng_of(0))
    assert (num_parameters(student), multiply_adds(student)) == (parameters, operations)


# --- names ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_name_says_every_size(data: st.DataObject) -> None:
    conv1, conv2, conv3, hidden = (data.draw(st.integers(1, 9)) for _ in range(4))
    name = f"{conv1}-{conv2}-{conv3}/{hidden}"
    # Of up to nine channels, nine pixels of a kernel let every pair of ranks through.
    ranks = [data.draw(st.integers(1, most)) for most in (conv1, conv2, conv2, conv3, hidden)]
    factorised = f"{name}@tucker={','.join(map(str, ranks[:4]))},svd={ranks[4]}"
    sizes = architecture(factorised)
    assert [*sizes.filters, sizes.hidden] == [conv1, conv2, conv3, hidden]
    assert [*(sizes.tucker or ()), sizes.svd] == ranks
    student = build(factorised, 3, generator=rng_of(0))
    weights = student.network.state_dict()
    assert [
        weights[f"0.{path}.weight"].shape[0] for path in ("0", "2.0", "2.1", "2.2", "4.0", "4.1")
    ] == [conv1, ranks[0], ranks[1], conv2, ranks[2], ranks[3]]
    assert weights["1.0.0.weight"].shape[0] == ranks[4]


@needs_tensorly
def test_the_name_of_a_factorised_student_rebuilds_it() -> None:
    teacher = nature_of("net3")
    student = student_of(teacher, "teacher@half", generator=rng_of(0))
    again = build(student.name, 4, generator=rng_of(9))
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(states_of(3)), student(states_of(3)))
    # Only the teacher's own network can be factorised, whatever its name.
    assert student_of(teacher, "16-16-16/64@svd=8", generator=rng_of(0)).name == "net3@svd=8"
    with pytest.raises(UsageError, match="teacher@svd=8"):
        student_of(teacher, "net2@svd=8", generator=rng_of(0))


@pytest.mark.parametrize("network", ["dueling", "12-16-16/64"])
def test_a_born_again_student_has_the_teachers_architecture_and_weights_of_its_own(
    network: str,
) -> None:
    teacher = nature_of(network)
    student = student_of(teacher, "teacher", generator=rng_of(1))
    assert student.name == network
    mine, theirs = student.network.state_dict(), teacher.network.state_dict()
    assert {k: w.shape for k, w in mine.items()} == {k: w.shape for k, w in theirs.items()}
    assert not any(torch.equal(mine[k], theirs[k]) for k in mine if k.endswith("weight"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nett1", "did you mean net1?"),
        ("teecher", "did you mean teacher?"),
        ("16-16-16", "16-32-32/256"),
        ("", "teacher@half"),
        ("net1@quarter", "energy=0.9"),
        ("teacher@energy=2", "at most 1"),
    ],
)
def test_an_unknown_student_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_student(name)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- outputs --------------------------------------------------------------------------------


@needs_tensorly
def test_a_factorised_policy_starts_at_the_teachers_values_over_the_temperature() -> None:
    teacher, states = nature_of("net3"), states_of(5)
    values = teacher.values(states)
    policy = student_of(teacher, "teacher@energy=1", temperature=0.01, generator=rng_of(0))
    torch.testing.assert_close(policy(states), values / 0.01, atol=1e-2, rtol=0)
    valued = student_of(
        teacher, "teacher@energy=1", outputs="values", temperature=0.01, generator=rng_of(0)
    )
    torch.testing.assert_close(valued(states), values, atol=1e-4, rtol=0)


def test_a_student_that_does_not_say_what_its_outputs_are_is_refused(tmp_path: Path) -> None:
    save(tmp_path, build("net3", 4, generator=rng_of(2)))
    assert load_agent(tmp_path).outputs == "logits"
    with pytest.raises(ValueError, match="logits"):
        load_agent(tmp_path).values(states_of(1))
    config = read_config(tmp_path)
    config["settings"]["outputs"] = ["logits"]
    write_config(tmp_path, config)
    with pytest.raises(EbuError, match=r"config\.json"):
        load_agent(tmp_path)


# --- directories ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dueling", "12-16-16/64", "net3@tucker=4,5,6,7,svd=8"])
def test_a_saved_student_acts_as_before(tmp_path: Path, name: str) -> None:
    student, states = build(name, 4, generator=rng_of(2)), states_of(12)
    save(tmp_path / "new" / "student", student)
    agent = load_agent(tmp_path / "new" / "student")
    with torch.no_grad():
        outputs = student(states)
    assert torch.equal(agent.outputs_of(states), outputs)
    assert_are_best([agent.act(state) for state in states], outputs)
    actions, probabilities = agent.choose(states, epsilon=0.0, rng=np.random.default_rng(0))
    assert actions.tolist() == outputs.argmax(dim=1).tolist()
    assert probabilities.tolist() == [1.0] * 12


@pytest.mark.parametrize(
    ("student", "changes", "difference"),
    [
        (("net2", "logits"), {}, "network was net3, is net2"),
        (("net3", "values"), {}, "outputs was logits, is values"),
        (("net3", "logits"), {"seed": 6}, "seed was 5, is 6"),
        (("net3", "logits"), {"settings": {"kl": 2.0}}, "kl was 1.0, is 2.0"),
    ],
)
def test_another_student_is_not_overwritten(
    tmp_path: Path, student: tuple[str, Outputs], changes: dict[str, Any], difference: str
) -> None:
    save(tmp_path, build("net3", 4, generator=rng_of(1)))
    before = load_agent(tmp_path).outputs_of(states_of(3))
    name, outputs = student
    with pytest.raises(UsageError, match=difference) as refusal:
        save(tmp_path, build(name, 4, outputs=outputs, generator=rng_of(2)), **changes)
    assert "\n" not in str(refusal.value)
    assert torch.equal(load_agent(tmp_path).outputs_of(states_of(3)), before)
    # The same one trained again takes its place.
    again = build("net3", 4, generator=rng_of(2))
    save(tmp_path, again)
    with torch.no_grad():
        assert torch.equal(load_agent(tmp_path).outputs_of(states_of(3)), again(states_of(3)))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("fails", ["save_checkpoint", "write_config"])
def test_what_could_not_be_saved_whole_is_no_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise EbuError("full")

    student = build("net3", 4, generator=rng_of(2))
    with monkeypatch.context() as patch:
        patch.setattr(students, fails, full)
        with pytest.raises(EbuError, match="full"):
            save(tmp_path, student)
        with pytest.raises(UsageError, match="not a run directory"):
            load_agent(tmp_path)
    save(tmp_path, student)
    assert load_agent(tmp_path).frames == nature_of().frames
