"""The recursion of `ebu.targets` as one kernel for GPUs, in Triton.

    y_k = r_k + γ max(m_k, β y_{k+1} + (1−β) q_k)

One program does one row: a segment under one β. It goes from the segment's last step to its first
in blocks. No address depends on a result, so all of a block's values are loaded at once. Then
log₂ BLOCK rounds of composing the maps y → max(a, b·y + c) give y_{k+1} at each of its steps, and
the recursion itself, once, gives y_k, rounded as step by step. From block to block only the last y
is carried. Step by step each target would wait for five operations in float64 after the later
one: longer, by an order of magnitude, for a whole block.

Lanes count from a segment's end and all blocks have one size, so not a bit of a target depends on
the padding of its segment or on other rows.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# What a kernel computes with is of none of Python's types.

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = tl.constexpr(128)
_WARPS = 4
_UNROLLED_ACTIONS = 32
"""Actions whose values are loaded without waiting for one another."""

_FLOOR = tl.constexpr(-1e300)
"""Stands for −∞ where 0·(−∞) would be NaN."""

# A kernel that knew that a stride is 1 or an address a multiple of 16 would be no faster.
_NOT_SPECIALIZED = [
    *("targets", "rewards", "values", "actions", "terminated", "lengths", "betas", "steps"),
    *("rewards_row", "rewards_step", "values_row", "actions_row", "actions_step"),
    *("terminated_row", "lengths_row", "betas_row"),
]


def sweep(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None,
) -> Tensor:
    """Backward targets of N rows; nothing is checked, and nothing waits for the device.

    | argument | shape | dtype |
    | --- | --- | --- |
    | rewards | (N, T) | any real |
    | next_values | (N, T, A) | any real |
    | actions | (N, T) | any integer |
    | terminated | (N,) | bool, or any integer: other than 0 is true |
    | beta | scalar or (N,) | float64 where it is a tensor |
    | lengths | (N,), or None where each is T | any integer |

    Returns (N, T) float32: computed in float64 and rounded; where β is 0 `one_step_targets`, bit
    for bit; 0 in the padding.
    """
    num_rows, steps, num_actions = next_values.shape
    targets = torch.empty((num_rows, steps), dtype=torch.float32, device=rewards.device)
    if num_rows == 0:
        return targets
    if next_values.stride()[1:] != (num_actions, 1):
        next_values = next_values.contiguous()
    betas = beta if isinstance(beta, Tensor) else None
    fits_float32 = next_values.dtype in (torch.float32, torch.float16, torch.bfloat16)
    double = torch.float64 in (rewards.dtype, next_values.dtype)
    with torch.cuda.device_of(targets):
        _sweep[(num_rows,)](
            targets,
            rewards,
            next_values,
            actions,
            terminated,
            lengths,
            betas,
            gamma,
            0.0 if isinstance(beta, Tensor) else beta,
            steps,
            rewards.stride(0),
            rewards.stride(1),
            next_values.stride(0),
            actions.stride(0),
            actions.stride(1),
            terminated.stride(0),
            0 if lengths is None else lengths.stride(0),
            0 if betas is None else betas.stride(0),
            VALUE=tl.float32 if fits_float32 else tl.float64,
            ONE_STEP=tl.float64 if double else tl.float32,
            ACTIONS=num_actions,
            UNROLLED=min(num_actions, _UNROLLED_ACTIONS),
            num_warps=_WARPS,
            # A product and a sum are rounded each, as on the CPU.
            enable_fp_fusion=False,
        )
    return targets


@triton.jit
def _larger(x, y):
    """As torch.maximum: NaN where one of them is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bounded(x):
    """Such that a composition of 10^8 maps is finite."""
    x = tl.where(x < _FLOOR, _FLOOR, x)
    return tl.where(x > -_FLOOR, -_FLOOR, x)


@triton.jit
def _compose(a, b, c, outer_a, outer_b, outer_c):
    """The map (a, b, c) and then the outer one, as one map."""
    return _larger(outer_a, outer_b * a + outer_c), outer_b * b, outer_b * c + outer_c


@triton.jit
def _end(r, m, q, ends, gamma):
    """y of a segment's last step."""
    return tl.where(ends, r, r + gamma * _larger(m, q))


@triton.jit
def _load(
    rewards, values, actions, step, last, rewards_step, actions_step,
    VALUE: tl.constexpr, ACTIONS: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """r_k, m_k and q_k of these steps, float64; outside the segment 0, m at most."""
    inside = (step >= 0) & (step <= last)
    followed = (step >= 0) & (step < last)
    r = tl.load(rewards + step * rewards_step, mask=inside, other=0)
    taken = tl.load(actions + (step + 1) * actions_step, mask=followed, other=0)
    m = tl.full(step.shape, float("-inf"), VALUE)
    q = tl.full(step.shape, 0.0, VALUE)
    for first in range(0, ACTIONS, UNROLLED):
        for offset in tl.static_range(UNROLLED):
            action = tl.full(step.shape, first + offset, tl.int32)
            exists = action < ACTIONS
            x = tl.load(values + step * ACTIONS + action, mask=inside & exists, other=0).to(VALUE)
            q = tl.where(action == taken, x, q)
            m = tl.where(exists & (action != taken), _larger(m, x), m)
    m = m.to(tl.float64)
    return r.to(tl.float64), tl.where(m < _FLOOR, _FLOOR, m), q.to(tl.float64)


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def _sweep(
    targets, rewards, values, actions, terminated, lengths, betas,
    gamma: tl.float64, beta: tl.float64,
    steps, rewards_row, rewards_step, values_row, actions_row, actions_step,
    terminated_row, lengths_row, betas_row,
    VALUE: tl.constexpr, ONE_STEP: tl.constexpr, ACTIONS: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    targets += row * steps
    rewards += row * rewards_row
    values += row * values_row
    actions += row * actions_row
    ends = tl.load(terminated + row * terminated_row) != 0
    length = steps if lengths is None else tl.load(lengths + row * lengths_row)
    last = length.to(tl.int64) - 1
    if betas is not None:
        beta = tl.load(betas + row * betas_row)
    # Python's floats, which the interpreter passes on, would count as float32.
    gamma = tl.full((), gamma, tl.float64)
    beta = tl.full((), beta, tl.float64)
    lane = tl.arange(0, _BLOCK)

    carried = tl.full((), 0.0, tl.float64)
    first_lane = last
    while first_lane >= 0:
        step = first_lane - lane
        r, m, q = _load(
            rewards, values, actions, step, last, rewards_step, actions_step,
            VALUE, ACTIONS, UNROLLED,
        )  # fmt: skip
        next_r, next_m, next_q = _load(
            rewards, values, actions, step + 1, last, rewards_step, actions_step,
            VALUE, ACTIONS, UNROLLED,
        )  # fmt: skip
        kept, next_kept = (1.0 - beta) * q, (1.0 - beta) * next_q

        # The map of the step after each: composed they give y_{k+1}. After
        # the end all is loaded as 0, and so is y.
        at_end = step + 1 == last
        end = _end(next_r, next_m, next_q, ends, gamma)
        a = _bounded(tl.where(at_end, end, next_r + gamma * next_m))
        b = tl.full((_BLOCK,), gamma * beta, tl.float64)
        c = _bounded(tl.where(at_end, end, next_r + gamma * next_kept))
        a, b, c = tl.associative_scan((a, b, c), 0, _compose)
        following = _larger(a, b * carried + c)
        carried = tl.sum(tl.where(lane == _BLOCK - 1, following, 0.0))

        at_end = step == last
        y = r + gamma * _larger(m, beta * following + kept)
        y = tl.where(at_end, _end(r, m, q, ends, gamma), y)
        reward, best = r.to(ONE_STEP), _larger(m, q).to(ONE_STEP)
        one_step = tl.where(at_end & ends, reward, reward + gamma.to(ONE_STEP) * best)
        y = tl.where(beta == 0.0, one_step.to(tl.float32), y.to(tl.float32))
        tl.store(targets + step, y, mask=step >= 0)
        first_lane -= _BLOCK

    padding = last + 1
    while padding < steps:
        tl.store(targets + padding + lane, 0.0, mask=padding + lane < steps)
        padding += _BLOCK
