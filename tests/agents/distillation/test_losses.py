"""Losses of distillation: closed forms, gradients, and what each of them cannot see."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.distillation import losses
from agents.distillation.experimental import adversarial, kegnet
from agents.distillation.settings import read_temperature
from agents.distillation.teachers import mean_entropy, median_gap, temperature_of
from ebu.errors import EbuError, UsageError

seeds = st.integers(0, 10_000)
temperatures = st.sampled_from([0.01, 0.1, 1.0, 4.0])
OutputLoss = Callable[[Tensor, Tensor], Tensor]


def outputs_of(seed: int, rows: int = 6, actions: int = 4) -> tuple[Tensor, Tensor]:
    """Outputs of a teacher and of a student, float64."""
    draw = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, rows, actions, generator=draw, dtype=torch.float64)
    return teacher, student


def rows_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


@given(seeds, temperatures)
def test_a_divergence_is_zero_for_the_policy_itself_and_positive_for_others(
    seed: int, temperature: float
) -> None:
    teacher, student = outputs_of(seed)
    same = losses.policy_divergence(teacher, teacher / temperature, temperature=temperature)
    assert same.item() == pytest.approx(0, abs=1e-9)
    assert losses.policy_divergence(teacher, student, temperature=temperature) > 1e-6


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
    both = gradient(
        lambda z: losses.policy_divergence(teacher, z / temperature, temperature=temperature),
        student,
    )
    torch.testing.assert_close(both, softened / temperature / rows)
    mixed = gradient(
        lambda z: losses.hinton(teacher, z, hard, temperature=temperature, soft_weight=1.0),
        student,
    )
    torch.testing.assert_close(mixed, softened * temperature / rows)


@given(seeds, st.sampled_from([kl, losses.hard_label, losses.centred_regression]))
def test_policy_losses_are_blind_to_a_constant_of_each_state(seed: int, loss: OutputLoss) -> None:
    teacher, student = outputs_of(seed)
    constants = 30 * rows_of(seed + 1, len(teacher), 1)
    expected = loss(teacher, student)
    torch.testing.assert_close(loss(teacher + constants, student), expected)
    torch.testing.assert_close(loss(teacher, student + constants), expected)


@given(seeds)
def test_raw_regression_sees_a_constant_of_each_state(seed: int) -> None:
    teacher, _ = outputs_of(seed)
    assert losses.regression(teacher, teacher).item() == 0
    # ½ · A · 3² whatever the values.
    assert losses.regression(teacher, teacher + 3).item() == pytest.approx(18)


@given(seeds)
def test_hard_labels_are_the_limit_of_small_temperatures(seed: int) -> None:
    teacher, student = outputs_of(seed)
    best = teacher.argmax(dim=1)
    by_hand = -torch.log_softmax(student, dim=1)[torch.arange(len(best)), best].mean()
    torch.testing.assert_close(losses.hard_label(teacher, student), by_hand)
    limit = losses.policy_divergence(teacher, student, temperature=1e-7)
    torch.testing.assert_close(limit, by_hand)


@given(seeds)
def test_hintons_soft_term_is_regression_of_centred_logits_where_it_is_hot(seed: int) -> None:
    teacher, student = outputs_of(seed)
    centred = [z - z.mean(dim=1, keepdim=True) for z in (teacher, student)]
    hot = losses.hinton(teacher, student, teacher.sum(), temperature=1e4, soft_weight=1.0)
    torch.testing.assert_close(hot, losses.regression(*centred) / 4, rtol=1e-3, atol=1e-6)


@given(seeds)
def test_an_ensemble_is_a_mean_of_policies_in_which_scales_do_not_count(seed: int) -> None:
    members, own = rows_of(seed, 3, 5, 4), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    mean = losses.ensemble(members, own)
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(5, dtype=torch.float64))
    scales = torch.tensor([1.0, 1000.0, 0.001], dtype=torch.float64)
    scaled = losses.ensemble(members * scales[:, None, None], own * scales)
    torch.testing.assert_close(scaled, mean)
    alone = losses.ensemble(members[:1], own[:1])
    torch.testing.assert_close(alone, torch.softmax(members[0] / 0.5, dim=1))


def test_mutual_learning_averages_the_peers_and_leaves_them_alone() -> None:
    peers, student = rows_of(1, 2, 6, 4).requires_grad_(), rows_of(2, 6, 4).requires_grad_()
    loss = losses.mutual(peers, student)
    each = [losses.policy_divergence(peer, student, temperature=1.0) for peer in peers]
    torch.testing.assert_close(loss, (each[0] + each[1]) / 2)
    loss.backward()
    assert peers.grad is None
    assert student.grad is not None


# --- values ---------------------------------------------------------------------------------


def test_centred_regression_by_hand() -> None:
    # Centred (−1, 0, 1) with spread √(2/3), against a student that says nothing.
    teacher, student = torch.tensor([[4.0, 5.0, 6.0]]), torch.full((1, 3), 8.0)
    assert losses.centred_regression(teacher, student).item() == pytest.approx(0.5 * 3)


@given(seeds, st.sampled_from([0.001, 20.0, 1e5]))
def test_centred_regression_is_blind_to_the_scale_of_the_teacher(seed: int, scale: float) -> None:
    teacher, student = outputs_of(seed)
    scaled = losses.centred_regression(scale * teacher, student)
    torch.testing.assert_close(scaled, losses.centred_regression(teacher, student))


@pytest.mark.parametrize("value", [0.0, 0.1, -700.3])
def test_a_state_whose_values_are_equal_asks_for_equal_outputs(value: float) -> None:
    teacher, student = torch.full((2, 6), value), torch.zeros(2, 6)
    assert losses.centred_regression(teacher, student).item() < 0.1
    assert (losses.spread(teacher) > 0).all()


def test_noise_is_scaled_by_the_spread_within_the_state() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 4, generator=draw, dtype=torch.float64)
    values = torch.tensor([[0.0, 0.1, 0.2, 0.3]], dtype=torch.float64).expand(20_000, 4)
    added = losses.noisy(values + 500, noise, scale=0.5) - values - 500
    # 80,000 draws: the deviation is known to 0.25 %, so 1.5 % are six standard errors.
    expected = 0.5 * values[0].std(correction=0).item()
    assert added.std().item() == pytest.approx(expected, rel=0.015)
    assert torch.equal(losses.noisy(values, noise, scale=0.0), values)


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


def test_attention_by_hand() -> None:
    # Σ_c f² over a 1 × 2 grid: (9 + 16, 0) and (0, 4): orthogonal maps.
    teacher = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    student = torch.tensor([[[[0.0, 2.0]]]])
    assert losses.attention([teacher], [student]).item() == pytest.approx(2)
    assert losses.attention([teacher, teacher], [student, teacher]).item() == pytest.approx(2)


@given(seeds)
def test_attention_maps_are_normalised_and_blind_to_scale(seed: int) -> None:
    teacher, student = rows_of(seed, 3, 8, 5, 5), rows_of(seed + 1, 3, 2, 5, 5)
    maps = losses.attention_map(student)
    assert maps.shape == (3, 25)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(3, dtype=torch.float64))
    expected = losses.attention([teacher], [student])
    assert 0 < expected <= 2
    torch.testing.assert_close(losses.attention([7 * teacher], [student / 3]), expected)


def test_features_that_are_all_zero_have_finite_gradients() -> None:
    dead, other = torch.zeros(4, 2, 3, 3), torch.rand(4, 2, 3, 3)
    for loss in (
        lambda f: losses.attention([other], [f]),
        lambda f: losses.relational_distance(other.flatten(1), f.flatten(1)),
        lambda f: losses.relational_angle(other.flatten(1), f.flatten(1)),
    ):
        assert gradient(loss, dead).isfinite().all()


def test_relational_distance_by_hand() -> None:
    # Distances 1, 2, 1 of mean 4/3 against 3, 4, 5 of mean 4.
    student = torch.tensor([[0.0], [1.0], [2.0]])
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    pairs = zip((1.0, 2.0, 1.0), (3.0, 5.0, 4.0), strict=True)
    expected = sum(0.5 * (s * 3 / 4 - t / 4) ** 2 for s, t in pairs) / 3
    assert losses.relational_distance(teacher, student).item() == pytest.approx(expected)


def test_relational_angle_by_hand() -> None:
    # On a line the three cosines are 1, −1, 1; in the 3-4-5 triangle 3/5, 0, 4/5.
    student = torch.tensor([[0.0], [1.0], [2.0]])
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    expected = (0.5 * 0.4**2 + 0.5 * 1 + 0.5 * 0.2**2) / 3
    assert losses.relational_angle(teacher, student).item() == pytest.approx(expected)


@given(seeds, st.sampled_from([losses.relational_distance, losses.relational_angle]))
def test_relations_are_blind_to_scale_and_shift(seed: int, loss: OutputLoss) -> None:
    teacher, student = rows_of(seed, 6, 5), rows_of(seed + 1, 6, 3)
    expected = loss(teacher, student)
    assert expected > 0
    torch.testing.assert_close(loss(100 * teacher + 7, 0.01 * student - 2), expected)
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
    terms = kegnet.terms_of(labels, codes, shares, outputs, decoded, temperature=2.0)
    divergence = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    # d(z) = 2 and d(x) = 1/2 in two of the four pairs.
    assert terms.tolist() == pytest.approx([divergence, 0.5, math.exp(-0.5)])


# --- temperature ----------------------------------------------------------------------------


def test_the_median_gap_is_between_the_two_best_actions() -> None:
    outputs = torch.tensor([[1.0, 4.0, 3.0], [0.0, -2.0, -9.0], [7.0, 7.0, 0.0]])
    assert median_gap(outputs) == 1.0
    assert median_gap(outputs[:2]) == 1.5


@given(seeds, st.sampled_from([0.01, 1.0, 300.0]))
def test_the_policy_at_auto_does_not_depend_on_the_scale_of_rewards(
    seed: int, scale: float
) -> None:
    teacher, _ = outputs_of(seed, rows=21)
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


@pytest.mark.parametrize("setting", ["warm", "0", "-1", "nan", "inf", ""])
def test_what_is_no_temperature_is_refused_with_the_choices(setting: str) -> None:
    for refuse in (read_temperature, lambda s: temperature_of(s, torch.eye(3))):
        with pytest.raises(UsageError, match=r"--temperature .*auto.*rusu.*positive number"):
            refuse(setting)
    read_temperature("auto")
    read_temperature("3e-2")


def test_a_teacher_without_preferences_gives_no_temperature() -> None:
    with pytest.raises(EbuError, match="median gap") as failure:
        temperature_of("auto", torch.zeros(5, 3))
    assert not isinstance(failure.value, UsageError)
