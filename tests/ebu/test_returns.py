"""Targets of the comparison: by hand, against plain loops, at the edges."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ebu.returns import (
    chosen_values,
    n_step_targets,
    optimality_bounds,
    peng_targets,
    retrace_targets,
    tightened_targets,
)
from ebu.targets import one_step_targets

unit = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.99]), st.floats(0.0, 1.0))
seeds = st.integers(0, 2**32 - 1)


def close(targets: Tensor, expected: Any) -> None:
    """To the rounding of float32 at the size of the row."""
    expected = torch.as_tensor(np.asarray(expected, np.float64))
    assert targets.dtype == torch.float32
    assert targets.shape == expected.shape
    scale = expected.abs().amax(-1, keepdim=True).clamp(min=1.0)
    assert bool(((targets.double() - expected).abs() <= 1e-5 * scale).all())


# --- single transitions and windows ---------------------------------------------------------


def test_double_by_hand() -> None:
    # The online network prefers actions 1, 0 and 1, the target network 0, 0 and 0.
    values = chosen_values(
        torch.tensor([[0.0, 9.0], [5.0, 4.0], [math.nan, 1.0]]),
        torch.tensor([[8.0, 6.0], [10.0, 7.0], [4.0, 2.0]]),
    )
    y = one_step_targets(
        torch.tensor([1.0, 2.0, 3.0]), values, torch.tensor([False, False, True]), gamma=0.5
    )
    assert y.tolist() == [4.0, 7.0, 3.0]


WINDOWS = {
    "whole": ([True] * 3, [False] * 3, 1 + 2 / 2 + 4 / 4 + 16 / 8),
    "terminated at its end": ([True] * 3, [False, False, True], 1 + 2 / 2 + 4 / 4),
    "terminated inside": ([True] * 3, [False, True, False], 1 + 2 / 2),
    "terminated at once": ([True] * 3, [True, False, True], 1),
    "two steps": ([True, True, False], [False] * 3, 1 + 2 / 2 + 16 / 4),
    "two steps, terminated": ([True, True, False], [False, True, False], 1 + 2 / 2),
    # What lies in the place of a step that is not joined does not matter.
    "one step": ([True, False, False], [False, True, True], 1 + 16 / 2),
    "one step, terminated": ([True, False, False], [True, True, True], 1),
}


@pytest.mark.parametrize(("joined", "terminated", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_n_step_by_hand(joined: list[bool], terminated: list[bool], expected: float) -> None:
    y = n_step_targets(
        torch.tensor([[1.0, 2.0, 4.0]]),
        torch.tensor([[3.0, 16.0]]),
        torch.tensor([terminated]),
        torch.tensor([joined]),
        gamma=0.5,
    )
    assert y.tolist() == [expected]


@given(seeds, unit)
def test_one_step_windows_are_one_step_targets_bit_for_bit(seed: int, gamma: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(9, generator=rng), torch.randn(9, 3, generator=rng)
    ends = torch.rand(9, generator=rng) < 0.3
    joined = torch.ones(9, 1, dtype=torch.bool)
    y = n_step_targets(rewards[:, None], values, ends[:, None], joined, gamma=gamma)
    assert torch.equal(y, one_step_targets(rewards, values, ends, gamma=gamma))


@given(seeds, st.integers(1, 7), unit)
@settings(deadline=None)
def test_n_step_equals_the_sum(seed: int, n: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(6, n)), rng.normal(size=(6, 3))
    terminated = rng.random((6, n)) < 0.2
    lengths = rng.integers(1, n + 1, size=6)
    expected = []
    for row, m in enumerate(lengths):
        last = np.flatnonzero(terminated[row, :m])
        stop = last[0] + 1 if len(last) else m
        y = sum(gamma**i * rewards[row, i] for i in range(stop))
        expected.append(y if len(last) else y + gamma**m * values[row].max())
    y = n_step_targets(
        torch.from_numpy(rewards),
        torch.from_numpy(values),
        torch.from_numpy(terminated),
        torch.from_numpy(np.arange(n) < lengths[:, None]),
        gamma=gamma,
    )
    close(y, expected)


# --- whole segments -------------------------------------------------------------------------


def segments(seed: int, steps: int, batch: tuple[int, ...] = (), num_actions: int = 3) -> Any:
    """Rewards, next values, actions, probabilities and ends of made-up segments."""
    rng = np.random.default_rng(seed)
    ties = rng.random() < 0.3
    values = rng.normal(size=(*batch, steps, num_actions))
    return (
        torch.from_numpy(rng.normal(size=(*batch, steps)) * 3).float(),
        torch.from_numpy(np.round(values) if ties else values).float(),
        torch.from_numpy(rng.integers(num_actions, size=(*batch, steps))),
        torch.from_numpy(rng.uniform(0.01, 1.0, size=(*batch, steps))).float(),
        torch.as_tensor(rng.random(batch) < 0.5),
    )


def peng_loop(r: Any, values: Any, ends: bool, *, gamma: float, trace_lambda: float) -> list[float]:
    """Peng's recursion as it is written."""
    y = 0.0
    targets: list[float] = []
    for k in reversed(range(len(r))):
        best = float(values[k].max())
        if k == len(r) - 1:
            y = float(r[k]) + (0.0 if ends else gamma * best)
        else:
            y = float(r[k]) + gamma * ((1 - trace_lambda) * best + trace_lambda * y)
        targets.insert(0, y)
    return targets


def retrace_sum(
    r: Any, values: Any, actions: Any, probabilities: Any, ends: bool, **settings: float
) -> list[float]:
    """Retrace as equation 3 of the paper: one-step errors, discounted by the traces so far."""
    gamma, trace_lambda = settings["gamma"], settings["trace_lambda"]
    epsilon = settings["target_epsilon"]
    steps, num_actions = values.shape
    r, values, probabilities = (
        x.double().numpy() for x in (torch.as_tensor(r), values, probabilities)
    )
    policy = np.full(values.shape, epsilon / num_actions)
    policy[np.arange(steps), values.argmax(1)] += 1 - epsilon
    expected = (policy * values).sum(1)
    bootstrap = gamma * expected
    if ends:
        bootstrap[-1] = 0.0
    targets = []
    for k in range(steps):
        y, weight = r[k] + bootstrap[k], 1.0
        for t in range(k + 1, steps):
            action = int(actions[t])
            weight *= gamma * trace_lambda * min(1.0, policy[t - 1, action] / probabilities[t])
            y += weight * (r[t] + bootstrap[t] - values[t - 1, action])
        targets.append(y)
    return targets


# Two actions, three steps, taken 0, 1, 0; γ = 1/2.
REWARDS = torch.tensor([1.0, 0.0, 8.0])
NEXT_VALUES = torch.tensor([[0.0, 2.0], [4.0, 1.0], [6.0, 10.0]])
ACTIONS = torch.tensor([0, 1, 0])


def test_peng_by_hand() -> None:
    ended, cut = torch.tensor(True), torch.tensor(False)
    # y3 = 8; y2 = 0 + ½ (½·4 + ½·8) = 3; y1 = 1 + ½ (½·2 + ½·3) = 2.25
    y = peng_targets(REWARDS, NEXT_VALUES, ended, gamma=0.5, trace_lambda=0.5)
    assert y.tolist() == [2.25, 3.0, 8.0]
    # y3 = 8 + ½·10 = 13; y2 = ½ (2 + 6.5) = 4.25; y1 = 1 + ½ (1 + 2.125)
    y = peng_targets(REWARDS, NEXT_VALUES, cut, gamma=0.5, trace_lambda=0.5)
    assert y.tolist() == [2.5625, 4.25, 13.0]


def test_retrace_by_hand() -> None:
    probabilities = torch.tensor([0.1, 0.75, 0.9])
    named: dict[str, Any] = {"gamma": 0.5, "trace_lambda": 1.0, "target_epsilon": 0.5}
    args = (REWARDS, NEXT_VALUES, ACTIONS, probabilities)
    # π is 0.75 for the greedy action and 0.25 for the other: E = 1.5, 3.25, 9.
    # c3 = min(1, 0.75 / 0.9) = 5/6 (action 0 is greedy in s3), c2 = min(1, 0.75 / 0.75) = 1.
    # y3 = 8; y2 = ½ (3.25 + 5/6 (8 − 4)); y1 = 1 + ½ (1.5 + y2 − 2)
    y2 = 0.5 * (3.25 + 5 / 6 * 4)
    y = retrace_targets(*args, torch.tensor(True), **named)
    close(y, [1 + 0.5 * (1.5 + y2 - 2), y2, 8.0])
    # y3 = 8 + ½·9
    y2 = 0.5 * (3.25 + 5 / 6 * 8.5)
    y = retrace_targets(*args, torch.tensor(False), **named)
    close(y, [1 + 0.5 * (1.5 + y2 - 2), y2, 12.5])


@given(seeds, st.integers(1, 40), unit, unit)
@settings(max_examples=150, deadline=None)
def test_peng_equals_the_loop(seed: int, steps: int, gamma: float, trace_lambda: float) -> None:
    r, values, _, _, ends = segments(seed, steps)
    named: dict[str, Any] = {"gamma": gamma, "trace_lambda": trace_lambda}
    close(peng_targets(r, values, ends, **named), peng_loop(r, values, bool(ends), **named))


@given(seeds, st.integers(1, 40), unit, unit, unit, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_retrace_equals_the_papers_sum(
    seed: int, steps: int, gamma: float, trace_lambda: float, epsilon: float, num_actions: int
) -> None:
    r, values, actions, probabilities, ends = segments(seed, steps, num_actions=num_actions)
    named: dict[str, Any] = {
        "gamma": gamma,
        "trace_lambda": trace_lambda,
        "target_epsilon": epsilon,
    }
    y = retrace_targets(r, values, actions, probabilities, ends, **named)
    close(y, retrace_sum(r, values, actions, probabilities, bool(ends), **named))


@given(seeds, st.integers(1, 20), st.sampled_from([0.0, math.nan, math.inf, -7.0]))
@settings(max_examples=100, deadline=None)
def test_padding_and_neighbours_change_no_bit(seed: int, steps: int, filler: float) -> None:
    batch = (3, 2)
    r, values, actions, probabilities, ends = segments(seed, steps, batch)
    lengths = torch.from_numpy(np.random.default_rng(seed).integers(1, steps + 1, size=batch))
    outside = torch.arange(steps) >= lengths.unsqueeze(-1)
    r[outside] = values[outside] = probabilities[outside] = filler
    actions[outside] = -999
    named: dict[str, Any] = {"gamma": 0.99, "trace_lambda": 0.9}
    y = peng_targets(r, values, ends, lengths=lengths, **named)
    z = retrace_targets(
        r, values, actions, probabilities, ends, lengths=lengths, target_epsilon=0.1, **named
    )
    assert not bool(y[outside].any())
    assert not bool(z[outside].any())
    for i, j in np.ndindex(batch):
        n = int(lengths[i, j])
        part = tuple(x[i, j, :n] for x in (r, values, actions, probabilities))
        alone = peng_targets(part[0], part[1], ends[i, j], **named)
        assert torch.equal(y[i, j, :n], alone)
        every: Any = (*part, ends[i, j])
        alone = retrace_targets(*every, target_epsilon=0.1, **named)
        assert torch.equal(z[i, j, :n], alone)


def test_long_segments_equal_the_loop() -> None:
    r, values, _, _, ends = segments(1, 5000)
    for gamma in (0.99, 1.0):
        named: dict[str, Any] = {"gamma": gamma, "trace_lambda": 1.0}
        y = peng_targets(r, values, ends, **named)
        close(y, peng_loop(r, values, bool(ends), **named))


# --- bounds ---------------------------------------------------------------------------------


def bounds(**changes: Any) -> tuple[float, float, float]:
    """y, L and U of one transition, in the middle of five: γ = ½, K = 2."""
    given: dict[str, Any] = {
        "rewards": [[3.0, 1.0, 2.0, 4.0, 8.0]],
        "terminated": [[False] * 5],
        "joined": [[True] * 5],
        "taken": [[6.0, 4.0]],
        "bootstraps": [[2.0, 16.0, 8.0]],
    }
    tensors = {name: torch.tensor(value) for name, value in {**given, **changes}.items()}
    y, lower, upper = optimality_bounds(**tensors, gamma=0.5)
    return float(y), float(lower), float(upper)


NO, YES = [False] * 5, [True] * 5
OPEN, NOTHING = (math.inf, -math.inf)


def test_bounds_by_hand() -> None:
    # y = 2 + ½·2. L: 2 + ½·4 + ¼·16 = 8 and 2 + ½·4 + ¼·8 + ⅛·8 = 7.
    # U: 2 (4 − 1) = 6 and 4 (6 − 3 − ½·1) = 10.
    assert bounds() == (3.0, 8.0, 6.0)
    assert bounds(bootstraps=[[2.0, 0.0, 8.0]], taken=[[4.0, 4.0]]) == (3.0, 7.0, 2.0)


@given(seeds, st.integers(1, 6), st.floats(0.1, 1.0))
@settings(deadline=None)
def test_bounds_equal_the_papers_sums(seed: int, reach: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    width = 2 * reach + 1
    rewards, taken = rng.normal(size=(5, width)), rng.normal(size=(5, reach))
    bootstraps = rng.normal(size=(5, reach + 1))
    terminated = rng.random((5, width)) < 0.15
    first, last = rng.integers(0, reach + 1, size=(2, 5))
    place = np.arange(width)
    joined = (place >= first[:, None]) & (place <= reach + last[:, None])
    y, lower, upper = optimality_bounds(
        *(torch.from_numpy(x) for x in (rewards, terminated, joined, taken, bootstraps)),
        gamma=gamma,
    )
    for row in range(5):
        r, ends = rewards[row], terminated[row]
        ahead = []
        for k in range(last[row] + 1):
            if ends[reach : reach + k].any():
                break
            total = sum(gamma**i * r[reach + i] for i in range(k + 1))
            end = 0.0 if ends[reach + k] else gamma ** (k + 1) * bootstraps[row, k]
            ahead.append(total + end)
        back = []
        for k in range(reach - first[row]):
            j = reach - k - 1
            if ends[j:reach].any():
                break
            total = sum(gamma**i * r[j + i] for i in range(k + 1))
            back.append(gamma ** -(k + 1) * (taken[row, j] - total))
        assert float(y[row]) == pytest.approx(ahead[0], abs=1e-9)
        assert float(lower[row]) == pytest.approx(max(ahead[1:], default=NOTHING), abs=1e-9)
        assert float(upper[row]) == pytest.approx(min(back, default=OPEN), abs=1e-9, rel=1e-6)


def test_tightened_targets_by_hand() -> None:
    #       no bound broken, below L,    above U,    both
    values = torch.tensor([1.0, 1.0, 9.0, 5.0])
    one_step = torch.tensor([2.0, 2.0, 2.0, 2.0])
    lower = torch.tensor([-math.inf, 7.0, 0.0, 6.0])
    upper = torch.tensor([math.inf, 8.0, 7.0, 1.0])
    y = tightened_targets(values, one_step, lower, upper, penalty=4.0)
    close(y, [2.0, (2 + 4 * 7) / 5, (2 + 4 * 7) / 5, (2 + 4 * 6 + 4 * 1) / 9])
    assert torch.equal(tightened_targets(values, one_step, lower, upper, penalty=0.0), one_step)


@given(seeds, st.floats(0.0, 10.0))
@settings(deadline=None)
def test_tightened_targets_pull_where_the_penalised_loss_does(seed: int, penalty: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    values, one_step, lower, upper = torch.randn(4, 50, generator=rng, dtype=torch.float64)
    values.requires_grad_(True)
    loss = (values - one_step) ** 2
    loss = loss + penalty * (lower - values).clamp(min=0) ** 2
    loss = loss + penalty * (values - upper).clamp(min=0) ** 2
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    target = tightened_targets(values.detach(), one_step, lower, upper, penalty=penalty)
    weight = 1 + penalty * ((values < lower).double() + (values > upper).double())
    expected = 2 * weight * (values.detach() - target)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
