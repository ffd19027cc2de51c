"""Backward targets: the values an episode's transitions are trained towards.

Lee, Choi, Chung, *Sample-Efficient Deep Reinforcement Learning via Episodic Backward
Update*, NeurIPS 2019, Algorithm 2. The table it sweeps backward,

    y_T = r_T  (terminated)   or   r_T + γ max_a Q̂(s_{T+1}, a)  (truncated)
    Q̃[k, a_{k+1}] ← β y_{k+1} + (1−β) Q̃[k, a_{k+1}]
    y_k = r_k + γ max_a Q̃[k, a],

has a closed form. With m_k the largest of Q̂(s_{k+1}, ·) over the actions other than
a_{k+1}, and q_k = Q̂(s_{k+1}, a_{k+1}),

    y_k = r_k + γ max(m_k, β y_{k+1} + (1−β) q_k).

Each step maps y to max(a, b·y + c) with b = γβ ≥ 0. Two such maps compose to a third of
the same form, so all targets come from a scan of depth log2 T.

Shapes that all functions share; `…` are any batch axes of the data, T steps, A actions:

| argument | shape | meaning |
| --- | --- | --- |
| rewards | (…, T) | r_k, any real dtype |
| next_values | (…, T, A) or (K, …, T, A) | Q̂(s_{k+1}, ·), any real dtype |
| actions | (…, T) | a_k, integers in [0, A) |
| terminated | (…) | the segment's last step ends its value; otherwise it bootstraps |
| beta | scalar, (K,), or two and more axes | β in [0, 1] |
| lengths | (…) | number of steps of each segment, in [1, T]; T for all if absent |

A scalar β gives (…, T). β of shape (K,) gives (K, …, T): one result for each β, from the
same next_values, or from each learner's own where next_values has that leading axis too.
β with two or more axes is broadcast against the batch axes (with the leading axis of
next_values, where it has one) by the usual rule: (K, 1) against (B,) or (K, B) gives
(K, B, T). Steps at and behind a segment's length are padding: whatever they hold changes
nothing, and their targets are 0.

β and lengths are checked where they are host values; on an accelerator that would wait
for the device, so tensors that lie there are trusted.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Stands for −∞ where 0·(−∞) would be NaN. Below every target that fits in float32, and a
# sum of 10^8 of them is still finite in float64.
_FLOOR = -1e300

# A window whose weight b^d is below this adds less than the rounding of float64 does.
_NEGLIGIBLE = 1e-18


class _Problem(NamedTuple):
    """The arguments, checked, with their axes aligned to `lead`, the result's batch axes."""

    rewards: Tensor  # (…, T)
    next_values: Tensor  # (…, T, A)
    next_actions: Tensor  # (…, T): a_{k+1}; 0 at the end and in the padding
    terminated: Tensor  # (…)
    beta: float | Tensor  # host number, or float64 (…, 1) on the device
    smallest_beta: float  # 0.0 where β lies on an accelerator and is not known
    lengths: Tensor | None  # (…, 1)
    lead: tuple[int, ...]


@torch.no_grad()
def one_step_targets(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, *, gamma: float
) -> Tensor:
    """r + γ max_a Q̂(s', a), or r where the transition terminated: the DQN target.

    rewards (B…), next_values (B…, A), terminated (B…) bool → (B…) float32. Computed in
    float32, in float64 if an argument is.
    """
    double = torch.float64 in (rewards.dtype, next_values.dtype)
    rewards = rewards.to(torch.float64 if double else torch.float32)
    # Two kernels on purpose: a fused one rounds differently in the tail of a vector, and
    # a target would then depend on its position in the batch.
    bootstrapped = rewards + gamma * next_values.amax(-1).to(rewards.dtype)
    return torch.where(terminated, rewards, bootstrapped).float()


@torch.no_grad()
def backward_targets(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """Targets of Algorithm 2 by a scan; shapes in the module's table, float32.

    Computed in float64 and rounded; where β is 0 they are `one_step_targets`, bit for bit.
    A row's targets do not depend on its padding nor on the rows beside it.
    ValueError if arguments do not fit.
    """
    problem = _align(rewards, next_values, actions, terminated, gamma, beta, lengths)
    steps = problem.rewards.shape[-1]
    position = torch.arange(steps, device=problem.rewards.device)
    if problem.lengths is None:
        last: Tensor = position == steps - 1
        valid = None
    else:
        last = position == problem.lengths - 1
        valid = position < problem.lengths

    one_step = None
    if problem.smallest_beta == 0.0:
        one_step = one_step_targets(
            problem.rewards,
            problem.next_values,
            last & problem.terminated.unsqueeze(-1),
            gamma=gamma,
        )
        if isinstance(problem.beta, float):
            return one_step if valid is None else one_step.masked_fill(~valid, 0.0)

    r = problem.rewards.double()
    m, q = _others_and_taken(problem.next_values, problem.next_actions)
    end = torch.where(problem.terminated.unsqueeze(-1), r, r + gamma * torch.maximum(m, q))
    kept = (1.0 - problem.beta) * q
    # maps[0] is a and maps[1] is c of y → max(a, b·y + c); the end is a constant map.
    maps = torch.stack(torch.broadcast_tensors(r + gamma * m, r + gamma * kept))
    maps = torch.where(last, end, maps).clamp_(_FLOOR, -_FLOOR)
    if valid is not None:
        maps.masked_fill_(~valid, 0.0)
    y = _scan(maps, gamma * problem.beta, problem.lengths, position)
    # The recursion itself, once, from the scanned values: huge terms that cancel are then
    # rounded as in the loop.
    following = torch.zeros_like(y)
    following[..., :-1] = y[..., 1:]
    y = torch.where(last, end, r + gamma * torch.maximum(m, problem.beta * following + kept))
    targets = y.float()
    if one_step is not None:
        targets = torch.where(torch.as_tensor(problem.beta) == 0.0, one_step, targets)
    return targets if valid is None else targets.masked_fill(~valid, 0.0)


@torch.no_grad()
def propagated_share(
    targets: Tensor,
    next_values: Tensor,
    actions: Tensor,
    *,
    beta: float | Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """Share of steps whose target follows the value that came back from the next step.

    A step does if β > 0 and β y_{k+1} + (1−β) q_k ≥ m_k. A segment's last step has no
    next step and is left out; a segment of one step has share 0.
    targets: the result of `backward_targets` for the same other arguments, which hold for
    a scalar β and for next_values without the leading axis of K as well.
    Returns the targets' batch axes, float32.
    """
    batch = actions.shape[:-1]
    problem = _align(
        actions, next_values, actions, torch.ones(batch, dtype=torch.bool), 1.0, beta, lengths
    )
    m, q = _others_and_taken(problem.next_values, problem.next_actions)
    m, q = m[..., :-1], q[..., :-1]
    value = problem.beta * targets[..., 1:].double() + (1.0 - problem.beta) * q
    follows = (value >= m) & (torch.as_tensor(problem.beta) > 0.0)
    if problem.lengths is None:
        return follows.sum(-1) / max(1, follows.shape[-1])
    inside = torch.arange(follows.shape[-1], device=follows.device) < problem.lengths - 1
    count = (problem.lengths.squeeze(-1) - 1).clamp(min=1)
    return (follows & inside).sum(-1) / count


def backward_targets_loop(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """The recursion step by step in float64 on the host: the reference of the scan."""
    problem = _align(rewards, next_values, actions, terminated, gamma, beta, lengths)
    steps = problem.rewards.shape[-1]
    shape = (*problem.lead, steps)
    b = torch.as_tensor(problem.beta, dtype=torch.float64).cpu().numpy()[..., None]
    b = np.broadcast_to(b, (*shape, 1))[..., 0, 0]
    r = np.broadcast_to(problem.rewards.double().cpu().numpy(), shape)
    values = problem.next_values.double().cpu().numpy()
    values = np.broadcast_to(values, (*shape, values.shape[-1]))
    taken = np.broadcast_to(problem.next_actions.cpu().numpy(), shape)
    ends = np.broadcast_to(problem.terminated.cpu().numpy(), problem.lead)
    if problem.lengths is None:
        last = np.full(problem.lead, steps - 1)
    else:
        last = np.broadcast_to(problem.lengths.squeeze(-1).cpu().numpy() - 1, problem.lead)

    targets = np.zeros(shape)
    following = np.zeros(problem.lead)
    with np.errstate(invalid="ignore", over="ignore"):
        for k in reversed(range(steps)):
            table = values[..., k, :].copy()
            bootstrap = np.where(ends, r[..., k], r[..., k] + gamma * table.max(-1))
            index = taken[..., k, None]
            q = np.take_along_axis(table, index, -1)[..., 0]
            np.put_along_axis(table, index, (b * following + (1 - b) * q)[..., None], -1)
            backward = r[..., k] + gamma * table.max(-1)
            following = np.where(k == last, bootstrap, np.where(k < last, backward, 0.0))
            targets[..., k] = following
    return torch.from_numpy(targets)


def _scan(maps: Tensor, weight: float | Tensor, lengths: Tensor | None, position: Tensor) -> Tensor:
    """Compose the maps from each step to its segment's end; `maps` is used up.

    maps (2, …, T): a and c of y → max(a, b·y + c). weight: b, a number or (…, 1).
    After the round with distance d, entry k holds the composition of the maps k to
    k + 2d − 1, or to the end; b^d is the same for all that do not reach the end.
    """
    steps = maps.shape[-1]
    a, c = maps[0], maps[1]
    distance = 1
    while distance < steps:
        if isinstance(weight, float):
            if weight < _NEGLIGIBLE:
                break
        elif maps.device.type == "cpu" and bool((weight < _NEGLIGIBLE).all()):
            break
        else:
            weight = torch.where(weight < _NEGLIGIBLE, 0.0, weight)
        inside = weight
        if lengths is not None:
            inside = (position[distance:] < lengths).double() * weight
        ahead = maps[..., distance:] * inside
        ahead += c[..., :-distance]
        here = a[..., :-distance]
        torch.maximum(here, ahead[0], out=here)
        c[..., :-distance] = ahead[1]
        weight = weight * weight
        distance *= 2
    return torch.maximum(a, c)


def _others_and_taken(next_values: Tensor, next_actions: Tensor) -> tuple[Tensor, Tensor]:
    """m and q of the closed form, float64; m is the floor where there is one action."""
    index = next_actions.unsqueeze(-1).expand(*next_values.shape[:-1], 1)
    q = next_values.gather(-1, index).squeeze(-1).double()
    m = next_values.scatter(-1, index, -torch.inf).amax(-1).double()
    return m.clamp_(min=_FLOOR), q


def _align(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None,
) -> _Problem:
    device = next_values.device
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}; it must lie in [0, 1]")
    if rewards.dim() < 1 or next_values.dim() < 2 or 0 in next_values.shape[-2:]:
        raise ValueError(
            f"rewards {_shape(rewards)} and next_values {_shape(next_values)} must be (…, T) "
            "and (…, T, A) with at least one step and one action"
        )
    batch, steps = rewards.shape[:-1], rewards.shape[-1]
    extra = next_values.dim() - rewards.dim() - 1
    if extra not in (0, 1) or next_values.shape[extra:-1] != rewards.shape:
        raise ValueError(
            f"next_values {_shape(next_values)} does not fit rewards {_shape(rewards)}; it must "
            "have their shape and an axis of actions behind, at most one of learners in front"
        )
    _require_shape("actions", actions, rewards.shape)
    _require_shape("terminated", terminated, batch)

    host_beta = torch.as_tensor(beta, dtype=torch.float64)
    if host_beta.numel() == 0:
        raise ValueError("beta holds no value")
    smallest = 0.0
    if host_beta.device.type == "cpu":
        if not bool(((host_beta >= 0.0) & (host_beta <= 1.0)).all()):
            raise ValueError(f"beta is {beta}; it must lie in [0, 1]")
        smallest = float(host_beta.min())
    if host_beta.dim() == 1:
        if extra and next_values.shape[0] != host_beta.shape[0]:
            raise ValueError(
                f"beta has {host_beta.shape[0]} values and next_values {_shape(next_values)} "
                f"the values of {next_values.shape[0]} learners"
            )
        host_beta = host_beta.reshape(-1, *(1 for _ in batch))
    try:
        lead = tuple(torch.broadcast_shapes(host_beta.shape, next_values.shape[:-2]))
    except RuntimeError as error:
        raise ValueError(
            f"beta {_shape(host_beta)} does not broadcast against the batch axes "
            f"{tuple(next_values.shape[:-2])}"
        ) from error
    if host_beta.dim() == 0 and host_beta.device.type == "cpu":
        aligned_beta: float | Tensor = float(host_beta)
    else:
        aligned_beta = host_beta.to(device).unsqueeze(-1)

    next_actions = torch.zeros(rewards.shape, dtype=torch.int64, device=device)
    next_actions[..., :-1] = actions[..., 1:]
    aligned_lengths = None
    if lengths is not None:
        lengths = torch.as_tensor(lengths)
        _require_shape("lengths", lengths, batch)
        if lengths.device.type == "cpu" and not bool(((lengths >= 1) & (lengths <= steps)).all()):
            raise ValueError(f"lengths must lie in [1, {steps}]: {lengths.tolist()}")
        aligned_lengths = lengths.to(device).unsqueeze(-1)
        inside = torch.arange(1, steps + 1, device=device) < aligned_lengths
        next_actions.masked_fill_(~inside, 0)
    return _Problem(
        rewards=rewards.to(device),
        next_values=next_values,
        next_actions=next_actions,
        terminated=terminated.to(device=device, dtype=torch.bool),
        beta=aligned_beta,
        smallest_beta=smallest,
        lengths=aligned_lengths,
        lead=lead,
    )


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} {_shape(tensor)} must have shape {tuple(shape)}")


def _shape(tensor: Tensor | Any) -> tuple[int, ...]:
    return tuple(tensor.shape)
