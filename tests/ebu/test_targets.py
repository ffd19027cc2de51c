"""Backward targets: by hand, against the paper's table, against the loop, at the edges."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ebu.double_backward import by_rounds, double_backward_targets
from ebu.targets import (
    backward_targets,
    backward_targets_loop,
    one_step_targets,
    propagated_share,
)

TOLERANCE = 1e-5


def paper_table(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: bool,
    *,
    gamma: float,
    beta: float,
) -> np.ndarray:
    """Algorithm 2 as printed: the table Q̃ of one episode is overwritten from the end."""
    table = next_values.double().numpy().copy()
    r = rewards.double().numpy()
    y = np.zeros(len(r))
    y[-1] = r[-1] if terminated else r[-1] + gamma * table[-1].max()
    for k in reversed(range(len(r) - 1)):
        taken = int(actions[k + 1])
        table[k, taken] = beta * y[k + 1] + (1 - beta) * table[k, taken]
        y[k] = r[k] + gamma * table[k].max()
    return y


def assert_close(targets: Tensor, reference: Tensor | np.ndarray, inputs: float = 0.0) -> None:
    """|Δ| / max(1, max |y|) ≤ 1e-5 in every segment.

    inputs: the largest input where β is 0, as one-step targets are rounded in float32.
    """
    reference = torch.as_tensor(reference)
    assert targets.dtype == torch.float32
    assert targets.shape == reference.shape
    scale = reference.abs().amax(-1, keepdim=True).clamp(min=max(1.0, inputs))
    assert bool(((targets.double() - reference).abs() <= TOLERANCE * scale).all())


@st.composite
def problems(draw: st.DrawFn, max_steps: int = 40) -> Any:
    """One episode or a batch of them, with every kind of number."""
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    steps, num_actions = draw(st.integers(1, max_steps)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "ties", "huge", "tiny", "mixed"]))

    def numbers(*shape: int) -> Tensor:
        x = np.asarray(rng.normal(size=shape))
        if kind == "ties":
            x = np.round(x)
        elif kind == "huge":
            x = x * 1e30
        elif kind == "tiny":
            x = x * 1e-38
        elif kind == "mixed":
            x = x * 10.0 ** rng.integers(-30, 31, size=shape)
        return torch.from_numpy(x).float()

    return {
        "rewards": numbers(*batch, steps),
        "next_values": numbers(*batch, steps, num_actions),
        "actions": torch.as_tensor(rng.integers(num_actions, size=(*batch, steps))),
        "terminated": torch.as_tensor(rng.random(batch) < 0.5),
    }


def largest_input(problem: dict[str, Any], beta: float) -> float:
    if bool((torch.as_tensor(beta) > 0.0).all()):
        return 0.0
    finite = [problem[name].nan_to_num(0.0, 0.0, 0.0) for name in ("rewards", "next_values")]
    return max(float(tensor.abs().max()) for tensor in finite)


unit = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.99, 1e-200]), st.floats(0.0, 1.0))


# Two actions, three steps, taken 0, 1, 0; γ = 1/2, β = 1/2.
HAND = {
    "rewards": torch.tensor([1.0, 0.0, 8.0]),
    "next_values": torch.tensor([[0.0, 2.0], [4.0, 1.0], [6.0, 10.0]]),
    "actions": torch.tensor([0, 1, 0]),
}


@pytest.mark.parametrize(
    ("last_reward", "terminated", "beta", "expected"),
    [
        # y3 = 8; Q̃[2] = (½·8 + ½·4, 1) → y2 = ½·6; Q̃[1] = (0, ½·3 + ½·2) → y1 = 1 + ½·2.5
        (8.0, True, 0.5, [2.25, 3.0, 8.0]),
        # Truncated, it bootstraps: y3 = 8 + ½·10; Q̃[2] = (8.5, 1); Q̃[1] = (0, 3.125)
        (8.0, False, 0.5, [2.5625, 4.25, 13.0]),
        # y3 = 8; Q̃[2] = (8, 1); Q̃[1] = (0, 4)
        (8.0, True, 1.0, [3.0, 4.0, 8.0]),
        # A bad end is not followed: y3 = −8; Q̃[2] = (−8, 1) → ½; Q̃[1] = (0, ½)
        (-8.0, True, 1.0, [1.25, 0.5, -8.0]),
    ],
)
def test_by_hand(last_reward: float, terminated: bool, beta: float, expected: list[float]) -> None:
    episode = {**HAND, "rewards": torch.tensor([1.0, 0.0, last_reward])}
    y = backward_targets(**episode, terminated=torch.tensor(terminated), gamma=0.5, beta=beta)
    assert y.tolist() == expected


@given(problems(), unit, unit)
@settings(max_examples=300, deadline=None)
def test_targets_equal_the_papers_table(problem: dict[str, Any], gamma: float, beta: float) -> None:
    scan = backward_targets(**problem, gamma=gamma, beta=beta)
    steps, num_actions = problem["next_values"].shape[-2:]
    rows = zip(
        problem["rewards"].reshape(-1, steps),
        problem["next_values"].reshape(-1, steps, num_actions),
        problem["actions"].reshape(-1, steps),
        problem["terminated"].reshape(-1),
        scan.reshape(-1, steps),
        strict=True,
    )
    for rewards, values, actions, terminated, targets in rows:
        table = paper_table(rewards, values, actions, bool(terminated), gamma=gamma, beta=beta)
        assert_close(targets, table, largest_input(problem, beta))


@given(problems(), unit)
@settings(max_examples=100, deadline=None)
def test_beta_zero_is_one_step_bit_for_bit(problem: dict[str, Any], gamma: float) -> None:
    ends = torch.zeros_like(problem["rewards"], dtype=torch.bool)
    ends[..., -1] = problem["terminated"]
    expected = one_step_targets(problem["rewards"], problem["next_values"], ends, gamma=gamma)
    assert torch.equal(backward_targets(**problem, gamma=gamma, beta=0.0), expected)
    several = backward_targets(**problem, gamma=gamma, beta=torch.tensor([0.5, 0.0, 1.0]))
    assert torch.equal(several[1], expected)


def test_one_step_by_hand() -> None:
    y = one_step_targets(
        torch.tensor([1.0, 2.0]),
        torch.tensor([[3.0, 5.0], [math.nan, 7.0]]),
        torch.tensor([False, True]),
        gamma=0.5,
    )
    assert y.tolist() == [3.5, 2.0]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("steps", "num_actions"), [(1, 4), (2, 1), (2049, 3), (30_000, 4)])
def test_long_segments(steps: int, num_actions: int, beta: float) -> None:
    rng = torch.Generator().manual_seed(steps)
    problem = {
        "rewards": torch.randn(steps, generator=rng),
        "next_values": torch.randn(steps, num_actions, generator=rng) * 3,
        "actions": torch.randint(num_actions, (steps,), generator=rng),
        "terminated": torch.tensor(True),
    }
    for gamma in (0.99, 1.0):
        scan = backward_targets(**problem, gamma=gamma, beta=beta)
        assert_close(scan, backward_targets_loop(**problem, gamma=gamma, beta=beta))


@pytest.mark.parametrize("value", [1e30, 3e38, -3e38, 1e-45])
def test_extreme_values_give_no_nan(value: float) -> None:
    steps = 1500
    for num_actions in (1, 2):
        problem = {
            "rewards": torch.zeros(steps),
            "next_values": torch.full((steps, num_actions), value),
            "actions": torch.zeros(steps, dtype=torch.int64),
            "terminated": torch.tensor(False),
        }
        for gamma in (0.0, 0.5, 1.0):
            for beta in (0.0, 1e-300, 0.5, 1.0):
                scan = backward_targets(**problem, gamma=gamma, beta=beta)
                assert bool(scan.isfinite().all())
                assert_close(scan, backward_targets_loop(**problem, gamma=gamma, beta=beta))


@st.composite
def padded(draw: st.DrawFn) -> Any:
    problem = draw(problems())
    batch, steps = problem["terminated"].shape, problem["rewards"].shape[-1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = torch.as_tensor(rng.integers(1, steps + 1, size=batch))
    return problem, lengths


BETAS = st.one_of(unit, st.lists(unit, min_size=1, max_size=4).map(torch.tensor))


@given(padded(), unit, BETAS, st.sampled_from([0.0, math.nan, math.inf, -math.inf, 7.0]))
@settings(max_examples=150, deadline=None)
def test_padding_and_neighbours_change_no_bit(
    case: Any, gamma: float, beta: float, filler: float
) -> None:
    problem, lengths = case
    steps, num_actions = problem["next_values"].shape[-2:]
    batch = problem["terminated"].shape
    outside = torch.arange(steps) >= lengths.unsqueeze(-1)
    problem["rewards"][outside] = filler
    problem["next_values"][outside] = filler
    problem["actions"][outside] = -999
    y = backward_targets(**problem, lengths=lengths, gamma=gamma, beta=beta)
    assert not bool(y[..., outside].any())
    loop = backward_targets_loop(**problem, lengths=lengths, gamma=gamma, beta=beta)
    assert_close(y, loop, largest_input(problem, beta))
    y = y.reshape(*y.shape[: y.dim() - len(batch) - 1], -1, steps)
    rows = {
        "rewards": problem["rewards"].reshape(-1, steps),
        "next_values": problem["next_values"].reshape(-1, steps, num_actions),
        "actions": problem["actions"].reshape(-1, steps),
    }
    for row, length in enumerate(lengths.reshape(-1).tolist()):
        alone = backward_targets(
            **{name: tensor[row, :length] for name, tensor in rows.items()},
            terminated=problem["terminated"].reshape(-1)[row],
            gamma=gamma,
            beta=beta,
        )
        assert torch.equal(y[..., row, :length], alone)


def random_problem(
    values_lead: tuple[int, ...] = (),
    batch: tuple[int, ...] = (4,),
    steps: int = 9,
    num_actions: int = 3,
    seed: int = 0,
) -> Any:
    rng = torch.Generator().manual_seed(seed)
    return {
        "rewards": torch.randn(*batch, steps, generator=rng),
        "next_values": torch.randn(*values_lead, *batch, steps, num_actions, generator=rng),
        "actions": torch.randint(num_actions, (*batch, steps), generator=rng),
        "terminated": torch.rand(batch, generator=rng) < 0.5,
    }


@pytest.mark.parametrize("batch", [(), (4,), (2, 2), (3,)])
def test_each_learner_has_its_own_values(batch: tuple[int, ...]) -> None:
    betas = torch.tensor([0.0, 0.375, 1.0])
    problem = random_problem((3,), batch)
    y = backward_targets(**problem, gamma=0.9, beta=betas)
    for k, beta in enumerate(betas.tolist()):
        one = {**problem, "next_values": problem["next_values"][k]}
        assert torch.equal(y[k], backward_targets(**one, gamma=0.9, beta=beta))
    same = backward_targets(**problem, gamma=0.9, beta=0.375)
    assert torch.equal(same[1], y[1])


def test_beta_with_axes_broadcasts_against_the_batch() -> None:
    problem = random_problem(batch=(4,))
    betas = torch.tensor([[0.1], [0.9], [0.0]], dtype=torch.float64)
    y = backward_targets(**problem, gamma=0.9, beta=betas)
    assert y.shape == (3, 4, 9)
    assert torch.equal(y, backward_targets(**problem, gamma=0.9, beta=betas[:, 0]))
    # One β for each row: against a batch that carries the axis of learners itself.
    problem = random_problem(batch=(3, 4))
    y = backward_targets(**problem, gamma=0.9, beta=betas)
    for k in range(3):
        row = {name: tensor[k] for name, tensor in problem.items()}
        assert torch.equal(y[k], backward_targets(**row, gamma=0.9, beta=float(betas[k])))


def test_share_of_steps_that_follow_the_propagated_value() -> None:
    # From the hand-computed case: step 2 follows (6 ≥ 1), step 1 follows (2.5 ≥ 0).
    ends = torch.tensor(True)
    y = backward_targets(**HAND, terminated=ends, gamma=0.5, beta=0.5)
    rest = (HAND["next_values"], HAND["actions"])
    assert float(propagated_share(y, *rest, beta=0.5)) == 1.0
    assert float(propagated_share(y, *rest, beta=0.0)) == 0.0
    bad = {**HAND, "rewards": torch.tensor([1.0, 0.0, -8.0])}
    y = backward_targets(**bad, terminated=ends, gamma=0.5, beta=1.0)
    assert float(propagated_share(y, *rest, beta=1.0)) == 0.5
    one = {name: tensor[:1] for name, tensor in HAND.items()}
    y = backward_targets(**one, terminated=ends, gamma=0.5, beta=1.0)
    assert float(propagated_share(y, one["next_values"], one["actions"], beta=1.0)) == 0.0


def test_share_keeps_batch_axes() -> None:
    problem = random_problem((2,), (4,))
    beta = torch.tensor([0.2, 0.8])
    y = backward_targets(**problem, gamma=0.9, beta=beta)
    values, actions = problem["next_values"], problem["actions"]
    share = propagated_share(y, values, actions, beta=beta)
    assert share.shape == (2, 4)
    for k in range(2):
        for row in range(4):
            alone = propagated_share(y[k, row], values[k, row], actions[row], beta=float(beta[k]))
            assert float(alone) == pytest.approx(float(share[k, row]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.1}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": torch.tensor([0.5, 1.5])}, "beta"),
        ({"beta": torch.tensor([])}, "beta"),
        ({"beta": torch.full((3, 3), 0.5)}, "broadcast"),
        ({"lengths": torch.tensor([1, 2, 3, 10])}, "lengths"),
        ({"lengths": torch.tensor([0, 2, 3, 4])}, "lengths"),
        ({"lengths": torch.tensor([1, 2])}, "lengths"),
        ({"rewards": torch.zeros(4, 8)}, "next_values"),
        ({"rewards": torch.tensor(1.0)}, "rewards"),
        ({"next_values": torch.zeros(4, 9, 0)}, "one action"),
        ({"next_values": torch.zeros(2, 2, 4, 9, 3)}, "next_values"),
        ({"next_values": torch.zeros(2, 4, 9, 3), "beta": torch.full((3,), 0.5)}, "learners"),
        ({"actions": torch.zeros(4, 1, dtype=torch.int64)}, "actions"),
        ({"terminated": torch.tensor(True)}, "terminated"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: Any, message: str) -> None:
    arguments = {**random_problem(), "gamma": 0.9, "beta": 0.5, **change}
    for function in (backward_targets, backward_targets_loop):
        with pytest.raises(ValueError, match=message) as error:
            function(**arguments)
        assert "\n" not in str(error.value)


def test_targets_carry_no_gradient() -> None:
    problem = random_problem()
    problem["next_values"].requires_grad_()
    assert not backward_targets(**problem, gamma=0.9, beta=0.5).requires_grad


def double_table(
    rewards: Tensor,
    online: Tensor,
    target: Tensor,
    actions: Tensor,
    terminated: bool,
    *,
    gamma: float,
    beta: float,
) -> np.ndarray:
    """Algorithm 2 with two tables: the online one chooses, the target one values."""
    choosing, valuing = online.double().numpy().copy(), target.double().numpy().copy()
    y = np.zeros(len(rewards))
    for k in reversed(range(len(rewards))):
        if k < len(rewards) - 1:
            taken = int(actions[k + 1])
            for table in (choosing, valuing):
                table[k, taken] = beta * y[k + 1] + (1 - beta) * table[k, taken]
        elif terminated:
            y[k] = float(rewards[k])
            continue
        y[k] = float(rewards[k]) + gamma * valuing[k, choosing[k].argmax()]
    return y


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5), unit, unit)
@settings(max_examples=150, deadline=None)
def test_double_equals_two_tables(
    seed: int, steps: int, num_actions: int, gamma: float, beta: float
) -> None:
    problem = random_problem(batch=(), steps=steps, num_actions=num_actions, seed=seed)
    online = torch.randn(steps, num_actions, generator=torch.Generator().manual_seed(seed))
    target, terminated = problem.pop("next_values"), problem.pop("terminated")
    reference = double_table(
        problem["rewards"],
        online,
        target,
        problem["actions"],
        bool(terminated),
        gamma=gamma,
        beta=beta,
    )
    y = double_backward_targets(
        problem["rewards"],
        online,
        target,
        problem["actions"],
        terminated,
        gamma=gamma,
        beta=beta,
    )
    assert_close(y, reference)


def test_double_with_one_network_is_not_double() -> None:
    problem = random_problem(batch=(3,), steps=12)
    values = problem.pop("next_values")
    lengths = torch.tensor([1, 7, 12])
    betas = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    y = double_backward_targets(
        problem["rewards"],
        values,
        values,
        problem["actions"],
        problem["terminated"],
        gamma=0.9,
        beta=betas,
        lengths=lengths,
    )
    plain = backward_targets(**problem, next_values=values, gamma=0.9, beta=betas, lengths=lengths)
    torch.testing.assert_close(y, plain)
    assert not bool(y[..., 0, 1:].any())
    assert not bool(y[..., 1, 7:].any())


def test_double_in_kernels_equals_the_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(batch=(4,), steps=9, num_actions=3)
    target = problem.pop("next_values")
    online = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))

    def targets() -> Tensor:
        return double_backward_targets(
            problem["rewards"],
            online,
            target,
            problem["actions"],
            problem["terminated"],
            gamma=0.9,
            beta=torch.tensor([0.0, 0.3, 1.0]),
            lengths=torch.tensor([1, 5, 9, 9]),
        )

    on_a_cpu = targets()
    monkeypatch.setattr("ebu.double_backward.by_recursion", by_rounds)
    assert torch.equal(targets(), on_a_cpu)
