"""Backward targets with double Q-learning: one network chooses actions, the other values them."""

from array import array

import torch
from torch import Tensor

from ebu.target_arguments import TargetArguments, check_arguments


@torch.no_grad()
def double_backward_targets(
    rewards: Tensor,
    online_next_values: Tensor,
    target_next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """Targets of Algorithm 2 with double Q-learning: one network chooses, the other values.

    With O the online network's values (van Hasselt, Guez, Silver 2016), o_k = O(s_{k+1}, a_{k+1}),
    and a° the best of the other actions under O:

        y_k = r_k + γ (β y_{k+1} + (1−β) q_k)   where β y_{k+1} + (1−β) o_k ≥ O(s_{k+1}, a°)
        y_k = r_k + γ Q̂(s_{k+1}, a°)            elsewhere

    A segment that is truncated bootstraps from Q̂(s_{T+1}, argmax_a O(s_{T+1}, a)).
    Shapes as in the table of `ebu.targets`, online_next_values as target_next_values; float32. With
    O = Q̂ they are `backward_targets`, up to rounding; where β is 0 they are `one_step_targets` of
    `ebu.returns.chosen_values`. The recursion runs over steps: in Python's floats on the CPU, in T
    rounds of small kernels on a GPU.
    """
    if online_next_values.shape != target_next_values.shape:
        raise ValueError(
            f"online_next_values {tuple(online_next_values.shape)} must have the shape of "
            f"target_next_values {tuple(target_next_values.shape)}"
        )
    problem = check_arguments(
        rewards, target_next_values, actions, terminated, gamma, beta, lengths
    )
    lead, steps = problem.lead, problem.rewards.shape[-1]
    o, q = online_next_values.double(), problem.next_values.double()
    taken = problem.next_actions().expand(o.shape[:-1]).unsqueeze(-1)
    m, chosen = o.scatter(-1, taken, -torch.inf).max(-1, keepdim=True)

    def column(values: Tensor) -> Tensor:
        return values.squeeze(-1).expand(*lead, steps)

    r = problem.rewards.double().expand(*lead, steps)
    if isinstance(problem.beta, Tensor):
        b = problem.beta.to(r.device, torch.float64)
    else:
        # Filled where it is used: a copy from the host cannot be part of a CUDA graph.
        b = torch.full((), problem.beta, dtype=torch.float64, device=r.device)
    share = b.unsqueeze(-1)
    best = column(q.gather(-1, o.argmax(-1, keepdim=True)))
    # With β = 0 the taken action is one among all.
    other = torch.where(share > 0.0, column(q.gather(-1, chosen)), best)
    m = column(m)
    online_part = (1.0 - share) * column(o.gather(-1, taken))
    target_part = (1.0 - share) * column(q.gather(-1, taken))
    end = best.masked_fill(problem.terminated.bool().expand(lead).unsqueeze(-1), 0.0)
    parts = [part.expand(*lead, steps) for part in (r, m, online_part, target_part, other, end)]
    sweep = by_recursion if r.is_cpu else by_rounds
    return sweep(parts, b.expand(lead), gamma, problem)


def by_recursion(
    parts: list[Tensor], beta: Tensor, gamma: float, problem: TargetArguments
) -> Tensor:
    """Double targets step by step in Python's floats, row by row.

    | argument | shape, dtype | meaning |
    | --- | --- | --- |
    | parts | (…, T) float64 each | r; m; (1−β) o; (1−β) q; the value where the propagated one is
      not followed; the value after the last step |
    | beta | (…) float64 | |
    """
    steps = parts[0].shape[-1]
    rows = zip(*(part.reshape(-1, steps).tolist() for part in parts), strict=True)
    betas = beta.reshape(-1).tolist()
    lengths = [steps] * len(betas)
    if problem.lengths is not None:
        lengths = problem.lengths.expand(problem.lead).reshape(-1).tolist()
    targets = array("f")
    for (r, m, online, target, other, end), b, length in zip(rows, betas, lengths, strict=True):
        y = r[length - 1] + gamma * end[length - 1]
        backward = [y]
        for k in reversed(range(length - 1)):
            propagated = b * y
            follows = b > 0.0 and propagated + online[k] >= m[k]
            y = r[k] + gamma * (propagated + target[k] if follows else other[k])
            backward.append(y)
        targets.extend(backward[::-1])
        targets.extend([0.0] * (steps - length))
    return torch.frombuffer(targets, dtype=torch.float32).reshape(*problem.lead, steps)


def by_rounds(parts: list[Tensor], beta: Tensor, gamma: float, problem: TargetArguments) -> Tensor:
    """`by_recursion` in small kernels, without a wait for the device."""
    r, m, online, target, other, end = parts
    last, valid = (mask.expand(r.shape) for mask in problem.last_and_valid())
    y = torch.zeros_like(beta)
    targets = []
    for k in reversed(range(r.shape[-1])):
        propagated = beta * y
        follows = (propagated + online[..., k] >= m[..., k]) & (beta > 0.0)
        backward = torch.where(follows, propagated + target[..., k], other[..., k])
        y = r[..., k] + gamma * torch.where(last[..., k], end[..., k], backward)
        y = y.masked_fill(~valid[..., k], 0.0)
        targets.append(y)
    return torch.stack(targets[::-1], dim=-1).float()
