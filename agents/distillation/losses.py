"""Losses of distillation: how far a student is from its teacher, as functions of tensors.

Shapes that all functions share; every result is a scalar, the mean over the batch:

| argument | shape | meaning |
| --- | --- | --- |
| teacher, student | (B, A) float | outputs: action values Q, or logits of a policy |
| probabilities | (B, A) float | rows that sum to 1 |
| teacher, student (features) | (B, C, H, W) or (B, D) float | a layer after its ReLU |

Gradients flow into the student alone, as the teacher's tensors carry none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MOST_TRIPLET_ROWS = 64
"""Rows of a batch that `relational_angle` uses: its cost grows with their cube."""

# Below this share of a state's largest value the spread of its values is rounding.
_SMALLEST_SPREAD = 1e-6


# --- outputs: policies ----------------------------------------------------------------------


def divergence(probabilities: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ softmax(z_S)) of given distributions p; its gradient by z_S is (p_S − p) / B."""
    log_probabilities = functional.log_softmax(student, dim=1)
    return functional.kl_div(log_probabilities, probabilities, reduction="batchmean")


def policy_divergence(teacher: Tensor, student: Tensor, *, temperature: float) -> Tensor:
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


def ensemble(members: Tensor, temperatures: Tensor) -> Tensor:
    """Mean of the members' policies softmax(Q_k / τ_k): probabilities (B, A).

    members: (K, B, A), temperatures: (K,). Never a mean of raw values, which are of different
    scales: a member with large values would decide alone (Rusu et al. 2015; Hinton et al. 2015).
    """
    return torch.softmax(members / temperatures[:, None, None], dim=2).mean(dim=0)


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
    of Lee et al. 2019, Algorithm 2 (`states.hard_targets`).
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
