"""Factorised students: how close they start to the teacher, and what their ranks are."""

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents import TrainedAgent
from agents.architectures import read_ranks
from agents.distillation.experimental.factorised import (
    energy_rank,
    factorise,
    vbmf_rank,
)
from ebu.errors import UsageError
from tests.agents.distillation.small_pipelines import rng_of
from tests.agents.distillation.small_pipelines import teacher_of as small_teacher

needs_tensorly = pytest.mark.skipif(
    importlib.util.find_spec("tensorly") is None, reason="tensorly, the extra factorize, is missing"
)
STATES = torch.randint(
    256, (16, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
ATARI: dict[str, Any] = {"stack": 4, "frame_shape": (84, 84)}


def teacher_of(network: str = "16-32-32/64", **environment: Any) -> TrainedAgent:
    """An agent with random weights, no two layers' biases alike."""
    agent = small_teacher(network=network, num_actions=6, **{**ATARI, **environment})
    rng = rng_of(1)
    with torch.no_grad():
        for name, weight in agent.network.named_parameters():
            if name.endswith("bias"):
                weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return agent


def distance(teacher: TrainedAgent, how: str) -> float:
    """The largest difference of an output from the teacher's, in units of their deviation."""
    _, network = factorise(teacher, how)
    with torch.no_grad():
        outputs: Tensor = network(STATES)
    values = teacher.values(STATES)
    return float((outputs - values).abs().max() / values.std())


@needs_tensorly
@pytest.mark.parametrize("network", ["dueling", "net2"])
def test_at_full_rank_the_student_is_the_teacher(network: str) -> None:
    teacher = teacher_of(network)
    _, student = factorise(teacher, "energy=1")
    torch.testing.assert_close(student(STATES), teacher.values(STATES), atol=1e-4, rtol=0)


@needs_tensorly
def test_weights_of_low_rank_lose_nothing_at_that_rank_and_much_below() -> None:
    teacher = teacher_of()
    rng = torch.Generator().manual_seed(3)
    conv2, conv3, dense = (
        teacher.network.get_parameter(f"{path}.weight") for path in ("0.2", "0.4", "1.0")
    )

    def low(outer: int, inner: int, *shape: int) -> Tensor:
        """Random weights (outputs, inputs, *kernel) of these ranks."""
        outputs, inputs, *kernel = shape
        core = torch.randn(outer, inner, *kernel, generator=rng)
        left = torch.randn(outputs, outer, generator=rng)
        right = torch.randn(inputs, inner, generator=rng)
        weight = torch.einsum("po,oi...,qi->pq...", left, core, right)
        return weight / weight.std() * math.sqrt(2 / weight[0].numel())

    with torch.no_grad():
        conv2.copy_(low(7, 5, 32, 16, 4, 4))
        conv3.copy_(low(11, 9, 32, 32, 3, 3))
        dense.copy_(torch.randn(64, 13, generator=rng) @ torch.randn(13, 1568, generator=rng))
        dense.mul_(0.02 / dense.std())
    assert distance(teacher, "tucker=5,7,9,11,svd=13") < 1e-4
    for below in ("tucker=4,7,9,11", "tucker=5,6,9,11", "tucker=5,7,8,11", "tucker=5,7,9,10"):
        assert distance(teacher, below) > 1e-2
    assert distance(teacher, "svd=12") > 1e-2


@needs_tensorly
def test_the_first_convolution_the_last_layer_and_all_biases_are_the_teachers() -> None:
    teacher = teacher_of("dueling")
    name, student = factorise(teacher, "half")
    assert name == "dueling@tucker=16,32,32,32,svd=64"
    was, is_now = teacher.network.state_dict(), student.state_dict()
    pairs = {"0.0.weight": "0.0.weight", "0.0.bias": "0.0.bias"}
    pairs |= {"0.2.bias": "0.2.2.bias", "0.4.bias": "0.4.2.bias"}
    for stream in ("value", "advantage"):
        pairs |= {
            f"1.{stream}.0.bias": f"1.{stream}.0.1.bias",
            f"1.{stream}.2.weight": f"1.{stream}.2.weight",
            f"1.{stream}.2.bias": f"1.{stream}.2.bias",
        }
    for whole, factorised in pairs.items():
        assert torch.equal(was[whole], is_now[factorised])


@needs_tensorly
def test_half_is_half_the_channels_and_an_eighth_of_the_dense_rank() -> None:
    assert factorise(teacher_of(), "half")[0] == "16-32-32/64@tucker=8,16,16,16,svd=8"
    # Rounded up; 7 · 7 · 5 features are more than the 12 units.
    assert factorise(teacher_of("3-4-5/12"), "half")[0] == "3-4-5/12@tucker=2,2,2,3,svd=2"


@needs_tensorly
@pytest.mark.parametrize("how", ["energy=0.0001", "vbmf"])
def test_ranks_have_a_floor_where_weights_are_mere_noise(how: str) -> None:
    name, _ = factorise(teacher_of(), how)
    assert name == "16-32-32/64@tucker=2,4,4,4,svd=8"


@settings(max_examples=20)
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=8),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 2**32 - 1),
)
def test_energy_rank_is_the_least_that_keeps_the_share(
    values: list[float], one: float, other: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ordered = np.sort(values)[::-1]
    left, right = (np.linalg.qr(rng.normal(size=(8, 8)))[0][:, : len(values)] for _ in range(2))
    matrix = left * ordered @ right.T
    kept = np.cumsum(ordered**2) / np.sum(ordered**2)
    rank = energy_rank(matrix, one)
    assert kept[rank - 1] >= one - 1e-9
    assert rank == 1 or kept[rank - 2] < one + 1e-9
    assert (energy_rank(matrix, other) >= rank) or other < one


@pytest.mark.parametrize("shape", [(60, 60), (40, 300), (300, 40)])
@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_vbmf_tells_components_from_noise(shape: tuple[int, int], rank: int, scale: float) -> None:
    rng = np.random.default_rng(7)
    rows, columns = shape
    signal = 2 * rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    matrix = scale * (signal + rng.normal(size=shape))
    assert vbmf_rank(matrix) == rank
    assert vbmf_rank(matrix.T) == rank


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_without_noise_vbmf_keeps_what_is_there(rank: int) -> None:
    rng = np.random.default_rng(0)
    assert vbmf_rank(rng.normal(size=(20, rank)) @ rng.normal(size=(rank, 50))) == rank


@pytest.mark.parametrize(
    "how", ["", "halves", "energy=", "energy=0", "energy=1.01", "energy=nan", "svd=0", "tucker=1"]
)
def test_ranks_that_are_none_are_refused_in_one_line(how: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read_ranks(how)
    assert "\n" not in str(refusal.value)
    assert "energy" in str(refusal.value)


@needs_tensorly
@pytest.mark.parametrize("how", ["tucker=17,32,32,32", "svd=65"])
def test_ranks_above_the_teachers_are_refused(how: str) -> None:
    with pytest.raises(UsageError, match="at most"):
        factorise(teacher_of(), how)


@needs_tensorly
def test_what_cannot_be_factorised_is_refused() -> None:
    with pytest.raises(UsageError, match="factorised already"):
        factorise(teacher_of("net2@svd=8"), "half")
    with pytest.raises(UsageError, match="three convolutions"):
        factorise(teacher_of("net3", frame_shape=(6,)), "svd=8")


def test_a_missing_extra_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for refused in (lambda: read_ranks("half"), lambda: factorise(teacher_of("net3"), "half")):
        with pytest.raises(UsageError, match=r"pip install .*\[factorize\]'") as refusal:
            refused()
        assert "\n" not in str(refusal.value)
