"""What the kernel of the backward targets has to give; test_sweep_kernel.py runs these cases.

In a process of their own, as Triton decides when it is imported whether kernels are interpreted:
with TRITON_INTERPRET=1 they run on the CPU, without it on a GPU.
"""

import os
from typing import Any

import pytest
import torch
import triton.language
from hypothesis import given, settings
from torch import Tensor

from ebu import sweep_kernel
from ebu.target_arguments import check_arguments
from ebu.targets import _by_kernel, backward_targets, backward_targets_loop, one_step_targets
from tests.ebu.test_targets import (
    BETAS,
    HAND,
    assert_close,
    largest_input,
    padded,
    random_problem,
    unit,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LENGTHS = torch.tensor([1, 2, 5, 9])


def to_device(argument: Any) -> Any:
    return argument.to(DEVICE) if isinstance(argument, Tensor) else argument


def by_kernel(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None = None,
    device: Any = to_device,
) -> Tensor:
    r, q, a, ends = (device(tensor) for tensor in (rewards, next_values, actions, terminated))
    problem = check_arguments(r, q, a, ends, gamma, device(beta), device(lengths))
    return _by_kernel(problem, sweep_kernel.sweep).cpu()


@pytest.fixture(scope="module")
def short_blocks() -> Any:
    """Blocks of 16 steps: a short segment has several, and the interpreter takes less time."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(sweep_kernel, "_BLOCK", triton.language.constexpr(16))
        yield


@pytest.mark.parametrize(
    ("terminated", "expected"), [(True, [2.25, 3.0, 8.0]), (False, [2.5625, 4.25, 13.0])]
)
def test_by_hand(terminated: bool, expected: Any) -> None:
    y = by_kernel(**HAND, terminated=torch.tensor(terminated), gamma=0.5, beta=0.5)
    assert y.tolist() == expected


@pytest.mark.usefixtures("short_blocks")
@given(padded(), unit, BETAS)
@settings(max_examples=10 if INTERPRETED else 100, deadline=None)
def test_kernel_equals_loop(case: Any, gamma: float, beta: float) -> None:
    problem, lengths = case
    outside = torch.arange(problem["rewards"].shape[-1]) >= lengths.unsqueeze(-1)
    y = by_kernel(**problem, lengths=lengths, gamma=gamma, beta=beta)
    assert not bool(y[..., outside].any())
    loop = backward_targets_loop(**problem, lengths=lengths, gamma=gamma, beta=beta)
    assert_close(y, loop, largest_input(problem, beta))


# One float32 rounding; with γ or β in float32 targets would be off by ten times as much.
ROUNDED: dict[str, Any] = {"rtol": 1.2e-7, "atol": 1e-8}


@pytest.mark.parametrize(("steps", "num_actions"), [(129, 1), (300, 6)])
def test_segments_of_several_blocks(steps: int, num_actions: int) -> None:
    problem = random_problem(batch=(), steps=steps, num_actions=num_actions)
    y = by_kernel(**problem, gamma=0.99, beta=0.7)
    torch.testing.assert_close(y, backward_targets(**problem, gamma=0.99, beta=0.7), **ROUNDED)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("filler", [float("nan"), float("inf")])
def test_padding_and_neighbours_change_no_bit(filler: float) -> None:
    problem = random_problem(batch=(3,), steps=40)
    lengths = torch.tensor([16, 33, 1])
    outside = torch.arange(40) >= lengths.unsqueeze(-1)
    problem["rewards"][outside] = filler
    problem["next_values"][outside] = filler
    problem["actions"][outside] = -999
    y = by_kernel(**problem, lengths=lengths, gamma=0.9, beta=0.6)
    assert not bool(y[outside].any())
    for row, length in enumerate(lengths.tolist()):
        alone = {name: tensor[row] for name, tensor in problem.items()}
        for name in ("rewards", "next_values", "actions"):
            alone[name] = alone[name][:length]
        assert torch.equal(y[row, :length], by_kernel(**alone, gamma=0.9, beta=0.6))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_zero_is_one_step_bit_for_bit(dtype: torch.dtype) -> None:
    problem = random_problem(batch=(4,))
    problem["next_values"] = problem["next_values"].to(dtype)
    position = torch.arange(9)
    ends = (position == LENGTHS[:, None] - 1) & problem["terminated"][:, None]
    one_step = one_step_targets(problem["rewards"], problem["next_values"], ends, gamma=0.9)
    one_step[position >= LENGTHS[:, None]] = 0.0
    scalar = by_kernel(**problem, lengths=LENGTHS, gamma=0.9, beta=0.0)
    assert torch.equal(scalar, one_step)
    betas = torch.tensor([0.5, 0.0], dtype=torch.float64)
    several = by_kernel(**problem, lengths=LENGTHS, gamma=0.9, beta=betas)
    assert torch.equal(several[1], one_step)
    assert not torch.equal(several[0], one_step)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("values_lead", [(), (3,)])
def test_every_form_of_beta(values_lead: tuple[int, ...]) -> None:
    betas = torch.tensor([0.0, 0.375, 1.0])
    problem = random_problem(values_lead)
    y = by_kernel(**problem, lengths=LENGTHS, gamma=0.9, beta=betas)
    columns = by_kernel(**problem, lengths=LENGTHS, gamma=0.9, beta=betas[:, None])
    assert torch.equal(y, columns)
    scalar = by_kernel(**problem, lengths=LENGTHS, gamma=0.9, beta=0.375)
    assert torch.equal(y[1], scalar[1] if values_lead else scalar)
    expected = backward_targets(**problem, lengths=LENGTHS, gamma=0.9, beta=betas)
    torch.testing.assert_close(y, expected, **ROUNDED)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    ("num_actions", "value", "beta"), [(1, 3e38, 1.0), (2, -3e38, 1e-300), (2, 3e38, 1e-300)]
)
def test_extreme_values_give_no_nan(num_actions: int, value: float, beta: float) -> None:
    problem = {
        "rewards": torch.zeros(20),
        "next_values": torch.full((20, num_actions), value),
        "actions": torch.zeros(20, dtype=torch.int64),
        "terminated": torch.tensor(False),
    }
    y = by_kernel(**problem, gamma=1.0, beta=beta)
    assert_close(y, backward_targets_loop(**problem, gamma=1.0, beta=beta))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("action", "beta"), [(0, 0.5), (1, 0.5), (1, 0.0)])
def test_nan_is_not_hidden(action: int, beta: float) -> None:
    problem = random_problem(batch=(), steps=20, num_actions=2)
    problem["next_values"][10, action] = torch.nan
    y = by_kernel(**problem, gamma=0.9, beta=beta)
    assert bool(y[10].isnan())
    assert bool(y[:10].isnan().all()) == (beta > 0)
    assert torch.equal(y.isnan(), backward_targets(**problem, gamma=0.9, beta=beta).isnan())


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    ("rewards", "values", "actions", "ends"),
    [
        (torch.int32, torch.float16, torch.uint8, torch.bool),
        (torch.float32, torch.bfloat16, torch.int32, torch.int64),
        (torch.float64, torch.float32, torch.int64, torch.uint8),
        (torch.float16, torch.int64, torch.int16, torch.int8),
    ],
)
def test_every_dtype_and_any_strides(rewards: Any, values: Any, actions: Any, ends: Any) -> None:
    problem = random_problem(batch=(2,))
    problem = {
        "rewards": (3 * problem["rewards"]).to(rewards),
        "next_values": (3 * problem["next_values"]).to(values),
        "actions": problem["actions"].to(actions),
        "terminated": problem["terminated"].to(ends),
    }
    expected = backward_targets(**problem, gamma=0.9, beta=0.5)

    def strided(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        axes = tuple(reversed(range(argument.dim())))
        return argument.to(DEVICE).permute(axes).contiguous().permute(axes)

    for place in (to_device, strided):
        y = by_kernel(**problem, gamma=0.9, beta=0.5, device=place)
        torch.testing.assert_close(y, expected, **ROUNDED)


def test_an_empty_batch_has_no_targets() -> None:
    empty = random_problem(batch=(0,))
    assert by_kernel(**empty, gamma=0.9, beta=0.5).shape == (0, 9)
