"""Quantile targets and their loss: by hand, against a plain loop, and by their means."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ebu.double_backward import double_backward_targets
from ebu.quantiles import quantile_backward_targets, quantile_huber
from ebu.targets import backward_targets

unit = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])


def segments(seed: int, rows: int = 3, steps: int = 9, actions: int = 4, count: int = 5) -> Any:
    """Made-up segments of several lengths: arguments of the targets."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "rewards": torch.randn(rows, steps, generator=rng),
        "quantiles": torch.randn(count, rows, steps, actions, generator=rng),
        "actions": torch.randint(actions, (rows, steps), generator=rng),
        "terminated": torch.randint(2, (rows,), generator=rng),
        "lengths": torch.randint(1, steps + 1, (rows,), generator=rng),
    }


def by_a_loop(
    played: dict[str, Tensor], online: Tensor | None, gamma: float, beta: float
) -> np.ndarray:
    """The recursion of the module's docstring, one segment and one step after the other."""
    z = played["quantiles"].double().numpy()
    targets = np.zeros(z.shape[:-1])
    for row, length in enumerate(played["lengths"].tolist()):
        y = np.zeros(len(z))
        for k in reversed(range(length)):
            table = z[:, row, k].copy()
            choosing = (table.mean(0) if online is None else online[row, k].double().numpy()).copy()
            if k == length - 1:
                y = table[:, choosing.argmax()] * (1 - int(played["terminated"][row]))
            else:
                taken = int(played["actions"][row, k + 1])
                if beta > 0:
                    stays = choosing[taken]
                    table[:, taken] = beta * y + (1 - beta) * table[:, taken]
                    choosing[taken] = beta * y.mean() + (1 - beta) * stays
                    if choosing[taken] == choosing.max():
                        y = table[:, taken]
                    else:
                        y = table[:, choosing.argmax()]
                else:
                    y = table[:, choosing.argmax()]
            y = float(played["rewards"][row, k]) + gamma * y
            targets[:, row, k] = y
    return targets


@given(seed=st.integers(0, 2**32 - 1), beta=unit, gamma=unit, double=st.booleans())
def test_targets_are_those_of_a_plain_loop(
    seed: int, beta: float, gamma: float, double: bool
) -> None:
    played = segments(seed)
    online = played["quantiles"].mean(0).flip(-1) if double else None
    targets = quantile_backward_targets(**played, gamma=gamma, beta=beta, online_values=online)
    assert targets.dtype == torch.float32
    np.testing.assert_allclose(
        targets.numpy(), by_a_loop(played, online, gamma, beta), rtol=1e-4, atol=1e-5
    )


@given(seed=st.integers(0, 2**32 - 1), beta=unit, count=st.integers(1, 9), double=st.booleans())
def test_their_mean_is_the_scalar_target(seed: int, beta: float, count: int, double: bool) -> None:
    played = segments(seed, count=count)
    quantiles = played.pop("quantiles")
    rewards, actions, terminated, lengths = played.values()
    means, options = quantiles.mean(0), {"gamma": 0.9, "beta": beta, "lengths": lengths}
    if double:
        online = means.flip(-1)
        scalar = double_backward_targets(rewards, online, means, actions, terminated, **options)
    else:
        online = None
        scalar = backward_targets(rewards, means, actions, terminated, **options)
    targets = quantile_backward_targets(
        rewards, quantiles, actions, terminated, online_values=online, **options
    )
    torch.testing.assert_close(targets.mean(0), scalar, rtol=1e-4, atol=1e-5)


def test_one_terminated_segment_by_hand() -> None:
    # Two steps, two quantiles, γ = β = 1/2. Y_1 = 4. At s_1 action 1 was taken: its quantiles 0, 4
    # become ½·4 + ½·(0, 4) = 2, 4, mean 3, above 2, that of action 0: Y_0 = 1 + ½·(2, 4).
    targets = quantile_backward_targets(
        torch.tensor([1.0, 4.0]),
        torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[3.0, 4.0], [9.0, 9.0]]]),
        torch.tensor([0, 1]),
        torch.tensor(True),
        gamma=0.5,
        beta=0.5,
    )
    assert targets.tolist() == [[2.0, 4.0], [3.0, 4.0]]


def test_the_loss_by_hand() -> None:
    # Predicted 0 and 2 (τ = ¼, ¾), targets 1 and 4, δ = 1. Errors 1, 4 of the first: weights ¼,
    # Huber ½ and 3½: mean ¼·(½ + 3½) / 2 = ½. Errors −1, 2 of the second: ¼·½ and ¾·1½: mean 5/8.
    loss = quantile_huber(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]]), delta=1.0)
    assert loss.tolist() == pytest.approx([0.5 + 5 / 8])


def test_the_loss_is_least_at_the_quantiles() -> None:
    samples = torch.randn(4001, generator=torch.Generator().manual_seed(0)).sort().values[:, None]
    predicted = torch.zeros(4, 1, requires_grad=True)
    optimizer = torch.optim.Adam([predicted], lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        quantile_huber(predicted, samples, delta=1e-3).sum().backward()
        optimizer.step()
    expected = torch.quantile(samples[:, 0], torch.tensor([1, 3, 5, 7]) / 8)
    torch.testing.assert_close(predicted.detach()[:, 0], expected, atol=0.05, rtol=0)
