"""Backward targets: the values an episode's transitions are trained towards.

Lee, Choi, Chung, *Sample-Efficient Deep Reinforcement Learning via Episodic Backward
Update*, NeurIPS 2019, Algorithm 2. The table it sweeps backward,

    y_T = r_T  (terminated)   or   r_T + γ max_a Q̂(s_{T+1}, a)  (truncated)
    Q̃[k, a_{k+1}] ← β y_{k+1} + (1−β) Q̃[k, a_{k+1}]
    y_k = r_k + γ max_a Q̃[k, a],

has a closed form. With m_k the largest of Q̂(s_{k+1}, ·) over the actions other than
a_{k+1}, and q_k = Q̂(s_{k+1}, a_{k+1}),

    y_k = r_k + γ max(m_k, β y_{k+1} + (1−β) q_k).

Three ways to compute it give the same targets. On the CPU the recursion runs step by step in
Python's floats. On a GPU it is one kernel, `ebu.sweep_kernel`, or without Triton a scan of
some fifty kernels: each step maps y to max(a, b·y + c) with b = γβ ≥ 0, and two such maps
compose to a third of the same form, so log2 T rounds give all targets.

Shapes that all functions share; `…` are any batch axes of the data, T steps, A actions:

| argument | shape | meaning |
| --- | --- | --- |
| rewards | (…, T) | r_k, any real dtype |
| next_values | (…, T, A) or (K, …, T, A) | Q̂(s_{k+1}, ·), any real dtype |
| actions | (…, T) | a_k, integers in [0, A) |
| terminated | (…) | bool or 0 and 1: the last step ends the segment's value, or bootstraps |
| beta | scalar, (K,), or two and more axes | β in [0, 1] |
| lengths | (…) | number of steps of each segment, in [1, T]; T for all if absent |

A scalar β gives (…, T). β of shape (K,) gives (K, …, T): one result for each β, from the
same next_values, or from each learner's own where next_values has that leading axis too.
β with two or more axes is broadcast against the batch axes (with the leading axis of
next_values, where it has one) by the usual rule: (K, 1) against (B,) or (K, B) gives
(K, B, T). Steps from a segment's length on are padding: their content changes nothing, and
their targets are 0.

The ranges of β and lengths are checked on the host only: on an accelerator a check would
wait for the device.
"""

import functools
import math
import warnings
from array import array
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ebu.target_arguments import TargetArguments, check_arguments

# Stands for −∞ where 0·(−∞) would be NaN. Below every target that fits in float32, and a
# sum of 10^8 of them is still finite in float64.
_FLOOR = -1e300


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
    """Targets of Algorithm 2, float32; shapes in the module's table.

    Computed in float64 and rounded; where β is 0 they are `one_step_targets`, bit for bit.
    A row's targets depend neither on its padding nor on other rows.
    ValueError if arguments do not fit.
    """
    problem = check_arguments(rewards, next_values, actions, terminated, gamma, beta, lengths)
    if next_values.is_cuda and (sweep := _sweep_kernel(next_values.device)):
        return _by_kernel(problem, sweep)
    method = _recursion if next_values.is_cpu else _scan
    if not problem.beta_may_be_zero:
        return method(problem)
    last, valid = problem.last_and_valid()
    ends = last & problem.terminated.bool().unsqueeze(-1)
    one_step = one_step_targets(problem.rewards, problem.next_values, ends, gamma=gamma)
    one_step = one_step.masked_fill(~valid, 0.0)
    if isinstance(problem.beta, float):
        return one_step
    return torch.where(problem.beta.unsqueeze(-1) == 0.0, one_step, method(problem))


@torch.no_grad()
def propagated_share(
    targets: Tensor,
    next_values: Tensor,
    actions: Tensor,
    *,
    beta: float | Tensor,
) -> Tensor:
    """Share of steps whose target follows the value propagated from the next step.

    A step does if β > 0 and β y_{k+1} + (1−β) q_k ≥ m_k. A segment's last step has no
    next step and is left out; a segment of one step has share 0.
    targets: the result of `backward_targets` for the other arguments.
    Returns float32 with the targets' batch axes.
    """
    ends = torch.ones(actions.shape[:-1], dtype=torch.bool, device=actions.device)
    problem = check_arguments(actions, next_values, actions, ends, 1.0, beta, None)
    beta = problem.beta_column
    m, q = _others_and_taken(problem)
    m, q = m[..., :-1], q[..., :-1]
    value = beta * targets[..., 1:].double() + (1.0 - beta) * q
    follows = (value >= m) & (torch.as_tensor(beta) > 0.0)
    return follows.sum(-1) / max(1, follows.shape[-1])


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
    """The reference: Algorithm 2 as printed, which overwrites its table; float64, on the host."""
    problem = check_arguments(rewards, next_values, actions, terminated, gamma, beta, lengths)
    steps = problem.rewards.shape[-1]
    shape = (*problem.lead, steps)
    b = torch.as_tensor(problem.beta, dtype=torch.float64).cpu().numpy()
    b = np.broadcast_to(b, problem.lead)
    r = np.broadcast_to(problem.rewards.double().cpu().numpy(), shape)
    values = problem.next_values.double().cpu().numpy()
    values = np.broadcast_to(values, (*shape, values.shape[-1]))
    taken = np.broadcast_to(problem.next_actions().cpu().numpy(), shape)
    ends = np.broadcast_to(problem.terminated.bool().cpu().numpy(), problem.lead)
    if problem.lengths is None:
        last = np.full(problem.lead, steps - 1)
    else:
        last = np.broadcast_to(problem.lengths.cpu().numpy() - 1, problem.lead)

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


def _recursion(problem: TargetArguments) -> Tensor:
    """Step by step in Python's floats, row by row.

    An update of a network empties the processor's caches, so the time for a short segment depends
    on the number of distinct operations.
    """
    steps, num_actions = problem.next_values.shape[-2:]
    num_rows = math.prod(problem.lead)
    if num_rows == 0:
        return torch.zeros((*problem.lead, steps))

    def rows(tensor: Tensor, *shape: int) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:  # unknown to numpy
            tensor = tensor.float()
        numbers = tensor.detach().numpy()
        if numbers.shape != (*problem.lead, *shape):
            numbers = np.broadcast_to(numbers, (*problem.lead, *shape))
        return numbers.reshape(num_rows, *shape)

    rewards = rows(problem.rewards, steps)
    next_values = rows(problem.next_values, steps, num_actions)
    actions = rows(problem.actions, steps)
    terminated = rows(problem.terminated).tolist()
    beta, lengths = problem.beta, problem.lengths
    betas = [beta] * num_rows if isinstance(beta, float) else rows(beta).tolist()
    lengths_of_rows = [steps] * num_rows if lengths is None else rows(lengths).tolist()
    targets: list[float] = []
    for row, length in enumerate(lengths_of_rows):
        targets += _segment_targets(
            rewards[row, :length],
            next_values[row, :length],
            actions[row, 1:length],
            terminated[row],
            problem.gamma,
            betas[row],
        )
        targets += [0.0] * (steps - length)
    return torch.frombuffer(array("f", targets), dtype=torch.float32).reshape(*problem.lead, steps)


def _segment_targets(
    rewards: np.ndarray,
    next_values: np.ndarray,
    next_actions: np.ndarray,
    terminated: bool,
    gamma: float,
    beta: float,
) -> list[float]:
    """The targets of one segment of n steps: (n,), (n, A) and (n - 1,)."""
    table = np.array(next_values.T, np.float64, order="C")
    taken = (next_actions, np.arange(len(next_actions)))
    q = table[taken]
    table[taken] = -np.inf
    m = np.maximum.reduce(table)
    # The comparison below would drop a NaN of m.
    q = np.where(np.isnan(m[:-1]), np.nan, q)
    y = float(rewards[-1])
    if not terminated:
        y += gamma * float(m[-1])  # no action was taken after the end
    targets = [y]
    stored_share = 1.0 - beta
    columns = (rewards[-2::-1].tolist(), m[-2::-1].tolist(), q[::-1].tolist())
    for r, others, stored in zip(*columns, strict=True):
        value = beta * y + stored_share * stored
        y = r + gamma * (others if others > value else value)
        targets.append(y)
    targets.reverse()
    return targets


@functools.cache
def _sweep_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """The kernel for GPUs, tried once; None without Triton, or where it cannot build a kernel."""
    try:
        from ebu.sweep_kernel import sweep
    except ImportError:
        return None
    one = torch.zeros(1, 1, 1, device=device)
    try:
        sweep(one[0], one, one[0].long(), one[0, 0], gamma=1.0, beta=1.0, lengths=None)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"Triton cannot build a kernel here ({type(error).__name__}: {reason}), so a slower "
            "scan computes the targets; install a C compiler and Python's headers",
            stacklevel=3,
        )
        return None
    return sweep


def _by_kernel(problem: TargetArguments, sweep: Callable[..., Tensor]) -> Tensor:
    rows = problem.rows()
    targets = sweep(
        rows.rewards,
        rows.next_values,
        rows.actions,
        rows.terminated,
        gamma=rows.gamma,
        beta=rows.beta,
        lengths=rows.lengths,
    )
    return targets.reshape(*problem.lead, targets.shape[-1])


def backward_targets_scan(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """`backward_targets` by a scan of log2 T rounds, on any device; used without Triton."""
    return _scan(check_arguments(rewards, next_values, actions, terminated, gamma, beta, lengths))


@torch.no_grad()
def _scan(problem: TargetArguments) -> Tensor:
    """Compose the maps of the steps by a scan."""
    r = problem.rewards.double()
    beta = problem.beta_column
    ends = problem.terminated.bool().unsqueeze(-1)
    last, valid = problem.last_and_valid()
    m, q = _others_and_taken(problem)
    end = torch.where(ends, r, r + problem.gamma * torch.maximum(m, q))
    kept = (1.0 - beta) * q
    # maps[0] is a and maps[1] is c of y → max(a, b·y + c); the end is a constant map.
    maps = torch.stack(torch.broadcast_tensors(r + problem.gamma * m, r + problem.gamma * kept))
    maps = torch.where(last, end, maps).clamp_(_FLOOR, -_FLOOR).masked_fill_(~valid, 0.0)
    y = _compose(maps, problem.gamma * beta, problem.lengths)
    # The recursion itself, once, from the scanned values: huge terms that cancel are then
    # rounded as step by step.
    following = torch.zeros_like(y)
    following[..., :-1] = y[..., 1:]
    y = r + problem.gamma * torch.maximum(m, beta * following + kept)
    return torch.where(last, end, y).float().masked_fill(~valid, 0.0)


def _compose(maps: Tensor, weight: float | Tensor, lengths: Tensor | None) -> Tensor:
    """Compose the maps from each step to its segment's end; overwrites `maps`.

    maps (2, …, T): a and c of y → max(a, b·y + c). weight: b, a number or (…, 1).
    After the round with distance d, entry k holds the composition of the maps k to
    k + 2d − 1, or to the end; b^d is the same for all that do not reach the end.
    """
    steps = maps.shape[-1]
    position = torch.arange(steps, device=maps.device)
    a, c = maps[0], maps[1]
    distance = 1
    while distance < steps:
        inside = weight
        if lengths is not None:
            inside = (position[distance:] < lengths.unsqueeze(-1)).double() * weight
        ahead = maps[..., distance:] * inside
        ahead += c[..., :-distance]
        here = a[..., :-distance]
        torch.maximum(here, ahead[0], out=here)
        c[..., :-distance] = ahead[1]
        weight = weight * weight
        distance *= 2
    return torch.maximum(a, c)


def _others_and_taken(problem: TargetArguments) -> tuple[Tensor, Tensor]:
    """m and q of the closed form, float64; m is the floor where there is one action."""
    values = problem.next_values
    index = problem.next_actions().unsqueeze(-1).expand(*values.shape[:-1], 1)
    q = values.gather(-1, index).squeeze(-1).double()
    m = values.scatter(-1, index, -torch.inf).amax(-1).double()
    return m.clamp_(min=_FLOOR), q
