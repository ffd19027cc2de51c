"""Losses of distillation, as functions of tensors, and the weighted sum that a student minimises.

Shapes that all functions share; every result is a scalar, the mean over the batch:

| argument | shape | meaning |
| --- | --- | --- |
| teacher, student | (B, A) float | outputs: action values Q, or logits of a policy |
| probabilities | (B, A) float | rows that sum to 1 |
| teacher, student (features) | (B, C, H, W) or (B, D) float | a layer after its ReLU |

Gradients flow into the student alone, as the teacher's tensors carry none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.distillation.settings import (
    CONVOLUTIONS,
    LOSSES,
    DistillConfig,
    check_weights,
    load_experimental,
)
from agents.trained import Outputs

MOST_TRIPLET_ROWS = 64
"""Rows of a batch that `relational_angle` uses: its cost grows with their cube."""

# Below this share of a state's largest value the spread of its values is rounding.
_SMALLEST_SPREAD = 1e-6


# --- outputs: policies ----------------------------------------------------------------------


def divergence(probabilities: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ softmax(z_S)) of given distributions p; its gradient by z_S is (p_S − p) / B."""
    log_probabilities = functional.log_softmax(student, dim=1)
    return functional.kl_div(log_probabilities, probabilities, reduction="batchmean")


def policy_divergence(teacher: Tensor, student: Tensor, *, temperature: float | Tensor) -> Tensor:
    """KL(softmax(Q_T / τ) ‖ softmax(z_S)): policy distillation.

    Rusu et al. 2015, "Policy Distillation". τ, in units of Q, sharpens the teacher alone, and there
    is no factor τ²: the student's outputs are logits, and the gradient by them is (p_S − p_T) / B,
    with no τ in front. Blind to a constant added to a state's values, on either side.
    """
    return divergence(torch.softmax(teacher / temperature, dim=1), student)


def hard_label(teacher: Tensor, student: Tensor) -> Tensor:
    """−log softmax(z_S)[argmax Q_T]: the teacher's greedy action as a class (Rusu et al. 2015).

    The limit of `policy_divergence` for τ → 0.
    """
    return functional.cross_entropy(student, teacher.argmax(dim=1))


def hinton(
    teacher: Tensor, student: Tensor, hard: Tensor, *, temperature: float, soft_weight: float
) -> Tensor:
    """w · T² · KL(softmax(z_T / T) ‖ softmax(z_S / T)) + (1 − w) · hard term.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. Both
    sides are softened, and T² makes up for gradients that shrink with T²: for large T the soft
    term is 1 / A of the regression of centred logits. hard: (), `hard_label` or `taken_values`.

    T is in units of the outputs. Given raw values whose gaps are 0.01, T² would scale the soft
    gradient to nothing beside a hard label's, and the mix would clone labels: give logits Q / τ.
    """
    soft = policy_divergence(teacher, student / temperature, temperature=temperature)
    return soft_weight * temperature**2 * soft + (1 - soft_weight) * hard


def mutual(peers: Tensor, student: Tensor) -> Tensor:
    """Mean over the peers of KL(softmax(z_k) ‖ softmax(z_S)), peers (K, B, A).

    Zhang et al. 2018, "Deep Mutual Learning". No gradient flows into the peers.
    """
    probabilities = torch.softmax(peers.detach(), dim=2)
    return torch.stack([divergence(of_peer, student) for of_peer in probabilities]).mean()


# --- outputs: values ------------------------------------------------------------------------


def regression(teacher: Tensor, student: Tensor) -> Tensor:
    """½ ‖z_T − z_S‖² of raw outputs (Ba, Caruana 2014, "Do Deep Nets Really Need to be Deep?").

    For students of values only: it spends a small student on the value of the state, which its
    actions do not depend on.
    """
    return 0.5 * (student - teacher).square().sum(dim=1).mean()


def centred_regression(teacher: Tensor, student: Tensor) -> Tensor:
    """½ ‖(z_T − mean z_T) / spread(z_T) − (z_S − mean z_S)‖², means over a state's actions.

    Blind to a state's constant on either side, and to the scale of the teacher's values.
    """
    advantages = (teacher - teacher.mean(dim=1, keepdim=True)) / spread(teacher)
    return regression(advantages, student - student.mean(dim=1, keepdim=True))


def spread(values: Tensor) -> Tensor:
    """Standard deviation of each state's values (B, A) over its actions: (B, 1), above 0."""
    floor = _SMALLEST_SPREAD * values.abs().amax(dim=1, keepdim=True)
    deviation = values.std(dim=1, keepdim=True, correction=0)
    return torch.maximum(deviation, floor).clamp_min(torch.finfo(values.dtype).tiny)


def noisy(teacher: Tensor, noise: Tensor, *, scale: float) -> Tensor:
    """z_T + scale · spread(z_T) · noise, noise (B, A) standard normal: a teacher that regularises.

    After Sau, Balasubramanian 2016, "Deep Model Compression: Distilling Knowledge from Noisy
    Teachers", whose noise is relative to the logits. Values are large against their differences,
    so noise relative to them would hide every action: here it is relative to the differences.
    """
    return teacher + scale * spread(teacher) * noise


def taken_values(student: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
    """Huber(Q_S(s, a) − y), mean over the states whose target is known: the hard term of values.

    actions: (B,) int64; targets: (B,) float32, NaN where unknown, for instance the backward targets
    of Lee et al. 2019, Algorithm 2 (`dataset.hard_targets`).
    """
    values = student.gather(1, actions[:, None]).squeeze(1)
    known = ~targets.isnan()
    # Where nothing is known the error is 0, and so is its gradient: 0 · NaN would be NaN.
    errors = functional.huber_loss(
        values, torch.where(known, targets, values.detach()), reduction="sum"
    )
    return errors / known.sum().clamp_min(1)


# --- features -------------------------------------------------------------------------------


def hint(regressed: Tensor, teacher: Tensor) -> Tensor:
    """‖r(f_S) − f_T‖², a mean over all elements (Romero et al. 2015, "FitNets", eq. 3).

    regressed: the student's layer through a learnt r, a 1×1 convolution or a linear layer, which
    brings it to the teacher's channels.
    """
    return functional.mse_loss(regressed, teacher)


def attention_map(features: Tensor) -> Tensor:
    """vec(Σ_c f_c²) of (B, C, H, W), each divided by its L2 norm: (B, H · W)."""
    return functional.normalize(features.square().sum(dim=1).flatten(1), dim=1)


def attention(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """‖map(f_S) − map(f_T)‖², summed over pairs of layers with the same grid, at most 2 each.

    Zagoruyko, Komodakis 2017, "Paying More Attention to Attention", eq. 2. The numbers of channels
    may differ; blind to the scale of either side's features.
    """
    pairs = zip(teacher, student, strict=True)
    distances = [(attention_map(s) - attention_map(t)).square().sum(dim=1) for t, s in pairs]
    return torch.stack(distances).sum(dim=0).mean()


def relational_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Huber of the pairwise distances' differences, each side's divided by its batch mean.

    Park et al. 2019, "Relational Knowledge Distillation", RKD-D; mean over all pairs of the batch
    (B, D) with B ≥ 2. Blind to scale, shift and rotation. Use batches of different
    episodes: neighbours in time are all alike.
    """
    return functional.huber_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(features: Tensor) -> Tensor:
    distances = functional.pdist(features.flatten(1))
    return distances / distances.mean().clamp_min(torch.finfo(distances.dtype).tiny)


def relational_angle(teacher: Tensor, student: Tensor) -> Tensor:
    """Huber of the differences of cos ∠(i, j, k), mean over all triplets of different rows.

    Park et al. 2019, RKD-A, for the first `MOST_TRIPLET_ROWS` rows of (B, D) with B ≥ 3.
    Blind to scale, shift and rotation.
    """
    student, teacher = student[:MOST_TRIPLET_ROWS], teacher[:MOST_TRIPLET_ROWS]
    rows = len(student)
    # Triplets with a repeated row have the same cosine, 0 or 1, on both sides.
    errors = functional.huber_loss(_cosines(student), _cosines(teacher), reduction="sum")
    return errors / (rows * (rows - 1) * (rows - 2))


def _cosines(features: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angle at j between rows i and k, in the order j, i, k."""
    flat = features.flatten(1)
    edges = functional.normalize(flat[None] - flat[:, None], dim=2)
    return edges @ edges.mT


# --- the weighted sum -----------------------------------------------------------------------


class Minibatch(NamedTuple):
    """The inputs of the losses of one minibatch.

    | field | shape | meaning |
    | --- | --- | --- |
    | student, teacher | by name | "outputs" (B, A), and what `Objective.layers` names of conv1, |
    | | | conv2, conv3 (B, C, H, W) and hidden (B, D): for instance `Features._asdict()` |
    | actions | (B,) int64 | actions taken, for the hard term of students of values |
    | targets | (B,) float32 | targets of their values; NaN: unknown; None: no loss needs them |
    | peers | (K, B, A) | logits of the other students in mutual learning |
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    actions: Tensor
    targets: Tensor | None = None
    peers: Tensor | None = None

    def both(self, layer: str = "outputs") -> tuple[Tensor, Tensor]:
        """The teacher's and the student's outputs or layer of this name."""
        return self.teacher[layer], self.student[layer]


class Objective(nn.Module):
    """The weighted sum of named losses, with their own parameters and random numbers.

    The parameters, of hints' regressors and the discriminator, are trained with the student and
    then dropped. `state_dict` holds them and the state of the generator.

    | argument | meaning |
    | --- | --- |
    | weights | by the names of `LOSSES`; a loss of weight 0 is not computed |
    | config | constants of the losses |
    | temperature | τ of the teacher, in units of its outputs |
    | outputs | whether the student's outputs are values or a policy's logits |
    | student_widths, teacher_widths | channels or units of the compared layers |
    | generator | draws first weights, then noise; on the CPU |

    Raises `UsageError` for weights that do not suit such a student.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        config: DistillConfig,
        *,
        temperature: float,
        outputs: Outputs,
        num_actions: int,
        student_widths: Mapping[str, int],
        teacher_widths: Mapping[str, int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_weights(weights, outputs)
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.config = config
        self.temperature = temperature
        self.outputs = outputs
        self.generator = generator
        self.layers = frozenset(layer for name in self.weights for layer in LOSSES[name].layers)
        """Layers besides the outputs that a minibatch must hold of both networks."""
        self.regressors = nn.ModuleDict()
        if "hint" in self.weights:
            self.regressors["conv3"] = nn.Conv2d(
                student_widths["conv3"], teacher_widths["conv3"], kernel_size=1
            )
        if "hint_dense" in self.weights:
            self.regressors["hidden"] = nn.Linear(
                student_widths["hidden"], teacher_widths["hidden"]
            )
        if "adversarial" in self.weights:
            self.discriminator = load_experimental("adversarial").Discriminator(num_actions)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (), and each loss () by its name, without its weight and without gradient."""
        computed = {name: _COMPUTE[name](self, minibatch) for name in self.weights}
        total = torch.stack([self.weights[name] * loss for name, loss in computed.items()]).sum()
        return total, {name: loss.detach() for name, loss in computed.items()}

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state)


def _hinton(objective: Objective, batch: Minibatch) -> Tensor:
    (teacher, student), config = batch.both(), objective.config
    temperature = config.hinton_temperature
    if objective.outputs == "values":
        # Both in units of Q, as is the hard term: T² then has the units of a squared error.
        temperature *= objective.temperature
        assert batch.targets is not None
        hard = taken_values(student, batch.actions, batch.targets)
    else:
        # Divided by τ the teacher's values are logits, as the student's outputs are.
        teacher = teacher / objective.temperature
        hard = hard_label(teacher, student)
    return hinton(teacher, student, hard, temperature=temperature, soft_weight=config.soft_weight)


def _noisy(objective: Objective, batch: Minibatch) -> Tensor:
    teacher, student = batch.both()
    noise = torch.randn(teacher.shape, generator=objective.generator).to(teacher.device)
    noised = noisy(teacher, noise, scale=objective.config.noise_scale)
    return (regression if objective.outputs == "values" else centred_regression)(noised, student)


def _hint(objective: Objective, batch: Minibatch, layer: str) -> Tensor:
    return hint(objective.regressors[layer](batch.student[layer]), batch.teacher[layer])


def _adversarial(objective: Objective, batch: Minibatch) -> Tensor:
    teacher, student = batch.both()
    real, made = (
        torch.softmax(teacher / objective.temperature, dim=1),
        torch.softmax(student, dim=1),
    )
    loss: Tensor = objective.discriminator.losses(real, made)
    return loss


def _mutual(_: Objective, batch: Minibatch) -> Tensor:
    assert batch.peers is not None
    return mutual(batch.peers, batch.student["outputs"])


_COMPUTE: dict[str, Callable[[Objective, Minibatch], Tensor]] = {
    "kl": lambda own, batch: policy_divergence(*batch.both(), temperature=own.temperature),
    "hard": lambda _, batch: hard_label(*batch.both()),
    "hinton": _hinton,
    "centred": lambda _, batch: centred_regression(*batch.both()),
    "regression": lambda _, batch: regression(*batch.both()),
    "noisy": _noisy,
    "hint": lambda own, batch: _hint(own, batch, "conv3"),
    "hint_dense": lambda own, batch: _hint(own, batch, "hidden"),
    "attention": lambda _, batch: attention(
        *zip(*(batch.both(layer) for layer in CONVOLUTIONS), strict=True)
    ),
    "distance": lambda _, batch: relational_distance(*batch.both("hidden")),
    "angle": lambda _, batch: relational_angle(*batch.both("hidden")),
    "adversarial": _adversarial,
    "mutual": _mutual,
}
