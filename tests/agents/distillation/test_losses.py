"""Losses of distillation: closed forms, gradients, what each cannot see, and their weighted sum."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.distillation import losses
from agents.distillation.experimental import adversarial, generators
from agents.distillation.losses import Minibatch, Objective
from agents.distillation.settings import LOSSES, check_weights, read_temperature
from agents.distillation.teachers import mean_entropy, median_gap, same_actions, temperature_of
from agents.trained import Outputs
from ebu.errors import EbuError, UsageError
from tests.agents.distillation.small_pipelines import config_with, rng_of

seeds = st.integers(0, 10_000)
temperatures = st.sampled_from([0.01, 0.1, 1.0, 4.0])
some = settings(max_examples=25)
OutputLoss = Callable[[Tensor, Tensor], Tensor]


def rows_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng_of(seed), dtype=torch.float64)


def outputs_of(seed: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Outputs of a teacher and of a student for four actions, float64."""
    teacher, student = rows_of(seed, 2, rows, 4)
    return teacher, student


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    loss(at).backward()
    assert at.grad is not None
    return at.grad


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    return losses.policy_divergence(teacher, student, temperature=0.1)


# --- policies -------------------------------------------------------------------------------


def test_policy_divergence_by_hand() -> None:
    # Q / τ = (ln 3, 0): teacher (3/4, 1/4), student (1/2, 1/2).
    teacher, student = torch.tensor([[math.log(3) / 2, 0.0]]), torch.tensor([[7.0, 7.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = losses.policy_divergence(teacher, student, temperature=0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@some
@given(seeds, temperatures)
def test_gradients_are_differences_of_policies(seed: int, temperature: float) -> None:
    teacher, student = outputs_of(seed)
    p_teacher = torch.softmax(teacher / temperature, dim=1)
    rows = len(teacher)
    # τ on the teacher alone: nothing stands before the difference.
    rusu = gradient(
        lambda z: losses.policy_divergence(teacher, z, temperature=temperature), student
    )
    torch.testing.assert_close(rusu, (torch.softmax(student, dim=1) - p_teacher) / rows)
    # T on both sides: 1 / T, which the factor T² of Hinton's mix turns into T.
    hard = torch.zeros((), dtype=torch.float64)
    softened = torch.softmax(student / temperature, dim=1) - p_teacher
    mixed = gradient(
        lambda z: losses.hinton(teacher, z, hard, temperature=temperature, soft_weight=1.0),
        student,
    )
    torch.testing.assert_close(mixed, softened * temperature / rows)


@some
@given(seeds, st.sampled_from([kl, losses.hard_label, losses.centred_regression]))
def test_policy_losses_are_blind_to_a_constant_of_each_state(seed: int, loss: OutputLoss) -> None:
    teacher, student = outputs_of(seed)
    constants = 30 * rows_of(seed + 1, len(teacher), 1)
    expected = loss(teacher, student)
    torch.testing.assert_close(loss(teacher + constants, student), expected)
    torch.testing.assert_close(loss(teacher, student + constants), expected)


@some
@given(seeds)
def test_limits_of_small_and_large_temperatures(seed: int) -> None:
    teacher, student = outputs_of(seed)
    best = teacher.argmax(dim=1)
    by_hand = -torch.log_softmax(student, dim=1)[torch.arange(len(best)), best].mean()
    torch.testing.assert_close(losses.hard_label(teacher, student), by_hand)
    limit = losses.policy_divergence(teacher, student, temperature=1e-7)
    torch.testing.assert_close(limit, by_hand)
    # Hinton's soft term is regression of centred logits where it is hot.
    centred = [z - z.mean(dim=1, keepdim=True) for z in (teacher, student)]
    hot = losses.hinton(teacher, student, teacher.sum(), temperature=1e4, soft_weight=1.0)
    torch.testing.assert_close(hot, losses.regression(*centred) / 4, rtol=1e-3, atol=1e-6)


def test_mutual_learning_averages_the_peers_and_leaves_them_alone() -> None:
    peers, student = rows_of(1, 2, 6, 4).requires_grad_(), rows_of(2, 6, 4).requires_grad_()
    loss = losses.mutual(peers, student)
    each = [losses.policy_divergence(peer, student, temperature=1.0) for peer in peers]
    torch.testing.assert_close(loss, (each[0] + each[1]) / 2)
    loss.backward()
    assert peers.grad is None
    assert student.grad is not None


# --- values ---------------------------------------------------------------------------------


def test_regressions_by_hand() -> None:
    teacher, student = torch.tensor([[4.0, 5.0, 6.0]]), torch.full((1, 3), 8.0)
    # ½ (4² + 3² + 2²); centred (−1, 0, 1) with spread √(2/3), against a student that says nothing.
    assert losses.regression(teacher, student).item() == pytest.approx(14.5)
    for scale in (0.001, 1.0, 1e5):
        centred = losses.centred_regression(scale * teacher, student)
        assert centred.item() == pytest.approx(0.5 * 3)


@pytest.mark.parametrize("value", [0.0, 0.1, -700.3])
def test_a_state_whose_values_are_equal_asks_for_equal_outputs(value: float) -> None:
    teacher, student = torch.full((2, 6), value), torch.zeros(2, 6)
    assert losses.centred_regression(teacher, student).item() < 0.1
    assert (losses.spread(teacher) > 0).all()


def test_noise_is_scaled_by_the_spread_within_the_state() -> None:
    noise = rows_of(0, 20_000, 4)
    values = torch.tensor([[0.0, 0.1, 0.2, 0.3]], dtype=torch.float64).expand(20_000, 4)
    added = losses.noisy(values + 500, noise, scale=0.5) - values - 500
    # 80,000 draws: the deviation is known to 0.25 %, so 1.5 % are six standard errors.
    expected = 0.5 * values[0].std(correction=0).item()
    assert added.std().item() == pytest.approx(expected, rel=0.015)


def test_the_hard_term_of_values_by_hand() -> None:
    student = torch.tensor([[1.0, 9.0], [9.0, 2.0], [3.0, 9.0]])
    actions = torch.tensor([0, 1, 0])
    # Errors 0.5 and 3: Huber ½ · 0.25 and 3 − ½; the third target is not known.
    targets = torch.tensor([1.5, 5.0, torch.nan])
    assert losses.taken_values(student, actions, targets).item() == pytest.approx(2.625 / 2)
    slope = gradient(lambda q: losses.taken_values(q, actions, targets), student)
    torch.testing.assert_close(slope, torch.tensor([[-0.25, 0.0], [0.0, -0.5], [0.0, 0.0]]))
    unknown = torch.full((3,), torch.nan)
    assert losses.taken_values(student, actions, unknown).item() == 0


# --- features -------------------------------------------------------------------------------


def test_attention_by_hand_and_blind_to_scale() -> None:
    # Σ_c f² over a 1 × 2 grid: (9 + 16, 0) and (0, 4): orthogonal maps.
    teacher = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    student = torch.tensor([[[[0.0, 2.0]]]])
    for scale in (1.0, 7.0):
        assert losses.attention([scale * teacher], [student]).item() == pytest.approx(2)
    assert losses.attention([teacher, teacher], [student, teacher]).item() == pytest.approx(2)


def test_features_that_are_all_zero_have_finite_gradients() -> None:
    dead, other = torch.zeros(4, 2, 3, 3), torch.rand(4, 2, 3, 3)
    for loss in (
        lambda f: losses.attention([other], [f]),
        lambda f: losses.relational_distance(other.flatten(1), f.flatten(1)),
        lambda f: losses.relational_angle(other.flatten(1), f.flatten(1)),
    ):
        assert gradient(loss, dead).isfinite().all()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # Distances 1, 2, 1 of mean 4/3 against 3, 5, 4 of mean 4.
        (
            losses.relational_distance,
            sum(0.5 * (s * 3 / 4 - t / 4) ** 2 for s, t in ((1, 3), (2, 5), (1, 4))) / 3,
        ),
        # On a line the three cosines are 1, −1, 1; in the 3-4-5 triangle 3/5, 0, 4/5.
        (losses.relational_angle, (0.5 * 0.4**2 + 0.5 * 1 + 0.5 * 0.2**2) / 3),
    ],
)
def test_relations_by_hand_and_blind_to_scale_and_shift(loss: OutputLoss, expected: float) -> None:
    student = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert loss(teacher, student).item() == pytest.approx(expected)
    assert loss(100 * teacher + 7, 0.01 * student - 2).item() == pytest.approx(expected)
    assert loss(teacher, 3 * teacher).item() == pytest.approx(0, abs=1e-9)


# --- adversaries and generators -------------------------------------------------------------


def test_adversarial_losses_by_hand() -> None:
    undecided = torch.zeros(5, 1)
    even = 2 * math.log(2)
    assert adversarial.discriminator_loss(undecided, undecided).item() == pytest.approx(even)
    assert adversarial.deception_loss(undecided).item() == pytest.approx(math.log(2))
    sure = torch.full((5, 1), 40.0)
    assert adversarial.discriminator_loss(sure, -sure).item() == pytest.approx(0, abs=1e-6)
    # Where the student is found out its gradient is at its largest, 1 over the batch.
    slope = gradient(adversarial.deception_loss, -sure)
    torch.testing.assert_close(slope, torch.full((5, 1), -0.2))


def test_the_terms_of_a_generator_by_hand() -> None:
    labels = torch.eye(2)
    codes, decoded = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    shares = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    # At τ = 2 the teacher gives its first action 3/4 in either state.
    outputs = torch.tensor([[2 * math.log(3), 0.0], [2 * math.log(3), 0.0]])
    terms = generators.terms_of(labels, codes, shares, outputs, decoded, temperature=2.0)
    divergence = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    # d(z) = 2 and d(x) = 1/2 in two of the four pairs.
    assert terms.tolist() == pytest.approx([divergence, 0.5, math.exp(-0.5)])


# --- temperature ----------------------------------------------------------------------------


def test_the_median_gap_is_between_the_two_best_actions() -> None:
    outputs = torch.tensor([[1.0, 4.0, 3.0], [0.0, -2.0, -9.0], [7.0, 7.0, 0.0]])
    assert median_gap(outputs) == 1.0
    assert median_gap(outputs[:2]) == 1.5


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_the_gap_ignores_actions_that_do_the_same(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(500, 3, generator=generator)
    doubled = outputs.repeat(1, 3) + noise * torch.randn(500, 9, generator=generator)
    same = same_actions(doubled)
    assert torch.equal(same, torch.eye(3, dtype=torch.bool).repeat(3, 3))
    assert torch.equal(same_actions(outputs), torch.eye(3, dtype=torch.bool))
    assert float(median_gap(doubled)) == pytest.approx(float(median_gap(outputs)), abs=5 * noise)
    # Where all actions do the same there is no gap.
    assert median_gap(outputs[:, [0, 0, 0]]) == 0.0


@pytest.mark.parametrize("scale", [0.01, 300.0])
def test_the_policy_at_auto_does_not_depend_on_the_scale_of_rewards(scale: float) -> None:
    teacher, _ = outputs_of(3, rows=21)
    one, scaled = temperature_of("auto", teacher), temperature_of("auto", scale * teacher)
    assert scaled.value == pytest.approx(scale * one.value)
    assert scaled.entropy == pytest.approx(one.entropy)
    best = torch.softmax(teacher / one.value, dim=1).topk(2, dim=1).values
    assert (best[:, 0] / best[:, 1]).median().item() == pytest.approx(math.e)


def test_temperatures_by_name_and_number() -> None:
    teacher, _ = outputs_of(0)
    assert temperature_of("rusu", teacher).value == 0.01
    assert temperature_of("0.25", teacher).value == 0.25
    assert temperature_of("auto", teacher, kind="logits").value == 1.0
    assert temperature_of("rusu", teacher).median_gap == median_gap(teacher)
    assert mean_entropy(torch.zeros(3, 4), 0.1) == pytest.approx(math.log(4))
    with pytest.raises(EbuError, match="median gap") as failure:
        temperature_of("auto", torch.zeros(5, 3))
    assert not isinstance(failure.value, UsageError)


@pytest.mark.parametrize("setting", ["warm", "0", "-1", "nan", "inf", "1e300", "1e-300", "３", ""])
def test_what_is_no_temperature_is_refused_with_the_choices(setting: str) -> None:
    with pytest.raises(UsageError, match=r"--temperature .*auto.*rusu.*positive number"):
        read_temperature(setting)


# --- the weighted sum -----------------------------------------------------------------------

ACTIONS = 4
STUDENT = {"conv1": 2, "conv2": 3, "conv3": 3, "hidden": 6}
TEACHER = {"conv1": 4, "conv2": 5, "conv3": 5, "hidden": 9}
GRIDS = {"conv1": (6, 6), "conv2": (3, 3), "conv3": (2, 2), "hidden": ()}


def minibatch_of(seed: int = 0) -> Minibatch:
    def features(widths: dict[str, int], seed: int) -> dict[str, Tensor]:
        draw = rng_of(seed)
        layers = {
            layer: torch.rand(8, width, *GRIDS[layer], generator=draw)
            for layer, width in widths.items()
        }
        return {**layers, "outputs": torch.randn(8, ACTIONS, generator=draw)}

    return Minibatch(
        student={layer: part.requires_grad_() for layer, part in features(STUDENT, seed).items()},
        teacher=features(TEACHER, seed + 1),
        actions=torch.arange(8) % ACTIONS,
        targets=torch.linspace(-1, 1, 8),
        peers=torch.randn(2, 8, ACTIONS, generator=rng_of(seed + 2)),
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
        generator=rng_of(3),
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
    kl = losses.policy_divergence(*given.both(), temperature=0.5)
    torch.testing.assert_close(parts["kl"], kl.detach())


def test_hintons_mix_of_a_policy_and_of_values() -> None:
    given = minibatch_of()
    _, parts = objective_of({"hinton": 1.0}, soft_weight=0.3, hinton_temperature=1.0)(given)
    _, alone = objective_of({"kl": 1.0, "hard": 1.0})(given)
    torch.testing.assert_close(parts["hinton"], 0.3 * alone["kl"] + 0.7 * alone["hard"])
    teacher, student = given.both()
    assert given.targets is not None
    _, parts = objective_of({"hinton": 1.0}, outputs="values", hinton_temperature=2.0)(given)
    # T = 2 τ = 1 on both sides.
    soft = losses.policy_divergence(teacher, student, temperature=1.0)
    hard = losses.taken_values(student, given.actions, given.targets)
    torch.testing.assert_close(parts["hinton"], (0.5 * soft + 0.5 * hard).detach())


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


@pytest.mark.parametrize(
    ("weights", "outputs", "complaint"),
    [
        ({"kll": 1.0}, "logits", "--loss kll: choose one of .* did you mean kl"),
        ({"kl": -1.0}, "logits", "--kl must be a weight of 0 or more"),
        ({"hint_dense": float("nan")}, "logits", "--hint-dense must be"),
        ({"kl": 0.0}, "logits", "every loss has weight 0"),
        ({"kl": 1.0}, "values", "kl is a loss for students whose outputs are logits"),
        ({"regression": 1.0}, "logits", "whose outputs are values.*choose among kl"),
    ],
)
def test_weights_that_are_no_objective_are_refused(
    weights: dict[str, float], outputs: Outputs, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_weights(weights, outputs)
