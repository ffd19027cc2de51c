"""Losses by name and weight: what is summed, what learns, what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agents.distillation import losses
from agents.distillation.experimental import adversarial
from agents.distillation.objective import Minibatch, Objective
from agents.distillation.settings import LOSSES, check_weights
from agents.trained import Outputs
from ebu.errors import UsageError
from tests.agents.distillation.small_pipelines import config_with

ACTIONS = 4
STUDENT = {"conv1": 2, "conv2": 3, "conv3": 3, "hidden": 6}
TEACHER = {"conv1": 4, "conv2": 5, "conv3": 5, "hidden": 9}
GRIDS = {"conv1": (6, 6), "conv2": (3, 3), "conv3": (2, 2), "hidden": ()}


def features_of(widths: dict[str, int], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        layer: torch.rand(8, width, *GRIDS[layer], generator=draw)
        for layer, width in widths.items()
    }
    return {**layers, "outputs": torch.randn(8, ACTIONS, generator=draw)}


def minibatch_of(seed: int = 0) -> Minibatch:
    student = {
        layer: part.requires_grad_() for layer, part in features_of(STUDENT, seed + 1).items()
    }
    return Minibatch(
        student=student,
        teacher=features_of(TEACHER, seed),
        actions=torch.arange(8) % ACTIONS,
        targets=torch.linspace(-1, 1, 8),
        peers=torch.randn(2, 8, ACTIONS, generator=torch.Generator().manual_seed(seed + 2)),
    )


def objective_of(
    weights: dict[str, float], *, outputs: Outputs = "logits", **config: Any
) -> Objective:
    return Objective(
        weights,
        config_with(**config),
        temperature=0.5,
        outputs=outputs,
        num_actions=ACTIONS,
        student_widths=STUDENT,
        teacher_widths=TEACHER,
        generator=torch.Generator().manual_seed(3),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_the_student_from_what_it_asks_for(name: str) -> None:
    given, outputs = minibatch_of(), LOSSES[name].outputs or "logits"
    objective = objective_of({name: 2.0}, outputs=outputs)
    needed = {"outputs", *objective.layers}
    reduced = given._replace(
        student={layer: given.student[layer] for layer in needed},
        teacher={layer: given.teacher[layer] for layer in needed},
    )
    total, parts = objective(reduced)
    assert total.shape == ()
    assert list(parts) == [name]
    assert total.item() == pytest.approx(2 * parts[name].item())
    assert not parts[name].requires_grad
    total.backward()
    compared = [layer for layer in reduced.student if given.student[layer].grad is not None]
    assert set(compared) == (set(LOSSES[name].layers) or {"outputs"})
    for weight in objective.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()


def test_the_total_is_the_weighted_sum_and_a_weight_of_zero_costs_nothing() -> None:
    given = minibatch_of()
    objective = objective_of({"kl": 1.0, "attention": 0.1, "hint": 0.0, "hard": 3.0})
    assert objective.layers == {"conv1", "conv2", "conv3"}
    assert list(objective.parameters()) == []
    total, parts = objective(given)
    expected = parts["kl"] + 0.1 * parts["attention"] + 3 * parts["hard"]
    torch.testing.assert_close(total.detach(), expected)
    teacher, student = given.teacher["outputs"], given.student["outputs"]
    kl = losses.policy_divergence(teacher, student, temperature=0.5)
    torch.testing.assert_close(parts["kl"], kl.detach())


def test_hintons_mix_at_one_is_policy_distillation_and_hard_labels() -> None:
    given = minibatch_of()
    _, parts = objective_of({"hinton": 1.0}, soft_weight=0.3, hinton_temperature=1.0)(given)
    _, alone = objective_of({"kl": 1.0, "hard": 1.0})(given)
    torch.testing.assert_close(parts["hinton"], 0.3 * alone["kl"] + 0.7 * alone["hard"])


def test_hintons_mix_of_a_student_of_values_has_their_targets_as_its_hard_term() -> None:
    given = minibatch_of()
    teacher, student = given.teacher["outputs"], given.student["outputs"]
    assert given.actions is not None
    assert given.targets is not None
    _, parts = objective_of({"hinton": 1.0}, outputs="values", hinton_temperature=2.0)(given)
    # T = 2 τ = 1 on both sides.
    soft = losses.policy_divergence(teacher, student, temperature=1.0)
    hard = losses.taken_values(student, given.actions, given.targets)
    torch.testing.assert_close(parts["hinton"], (0.5 * soft + 0.5 * hard).detach())
    with pytest.raises(ValueError, match="not given"):
        objective_of({"hinton": 1.0}, outputs="values")(given._replace(targets=None))


def test_players_learn_against_each_other() -> None:
    given, objective = minibatch_of(), objective_of({"adversarial": 1.0})
    student = given.student["outputs"]
    real = torch.softmax(given.teacher["outputs"] / 0.5, dim=1)
    made = torch.softmax(student, dim=1)
    judge = objective.discriminator
    weights = list(judge.parameters())
    of_judge = torch.autograd.grad(
        adversarial.discriminator_loss(judge(real), judge(made.detach())), weights
    )
    (of_student,) = torch.autograd.grad(adversarial.deception_loss(judge(made)), student)
    total, _ = objective(given)
    total.backward()
    torch.testing.assert_close([weight.grad for weight in weights], list(of_judge))
    torch.testing.assert_close(student.grad, of_student)


def test_an_objective_continues_from_its_state() -> None:
    given = minibatch_of()
    weights = {"noisy": 1.0, "hint": 0.5, "hint_dense": 0.5}
    objective = objective_of(weights)
    first, _ = objective(given)
    state = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    second, _ = objective(given)
    assert first != second
    other = objective_of(weights)
    other.load_state_dict(state)
    again, _ = other(given)
    assert torch.equal(again, second)


@pytest.mark.parametrize(
    ("weights", "outputs", "complaint"),
    [
        ({"kll": 1.0}, "logits", "--loss kll: choose one of .* did you mean kl"),
        ({"kl": 1.0, "attenton": 1.0}, "logits", "did you mean attention"),
        ({"kl": -1.0}, "logits", "--kl must be a weight of 0 or more"),
        ({"hint_dense": float("nan")}, "logits", "--hint-dense must be"),
        ({"kl": 0.0}, "logits", "every loss has weight 0"),
        ({}, "logits", "every loss has weight 0"),
        ({"kl": 1.0}, "values", "kl is a loss for students whose outputs are logits"),
        ({"regression": 1.0}, "logits", "whose outputs are values.*choose among kl"),
    ],
)
def test_weights_that_are_no_objective_are_refused(
    weights: dict[str, float], outputs: Outputs, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint) as refusal:
        check_weights(weights, outputs)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError):
        objective_of(weights, outputs=outputs)


def test_a_layer_that_a_network_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="--hint-dense compares hidden"):
        Objective(
            {"hint_dense": 1.0},
            config_with(),
            temperature=1.0,
            outputs="logits",
            num_actions=ACTIONS,
            student_widths={},
            teacher_widths=TEACHER,
            generator=torch.Generator(),
        )
