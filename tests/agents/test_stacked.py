"""K learners as one: each learns what it would alone, and none learns from another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import agents.stacked
from agents.graphs import Captured
from agents.learner import Learner
from agents.settings import LearnerConfig
from agents.stacked import StackedLearner
from tests.made_up import same, through_disk

CPU = torch.device("cpu")
NUM_ACTIONS, NUM_LEARNERS, STACK = 4, 3, 2
FRAME_SHAPES = pytest.mark.parametrize("frame_shape", [(6,), (36, 36)], ids=["flat", "image"])
NETWORKS = pytest.mark.parametrize("network", ["nature", "dueling"])
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16"])
UNITS: dict[str, Any] = {"output_scale": 1.0}
"""Initial values of a few units, against which roundings are judged."""
ROUNDED: dict[str, Any] = {
    "float32": {"atol": 1e-5, "rtol": 0},
    "bfloat16": {"atol": 0.05, "rtol": 0},
}
"""How far apart the same values may be when their sums are in another order."""


@pytest.fixture(autouse=True, params=["in turn", "in one pass"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute: that of the CPU, and that of a GPU on the CPU."""
    if request.param == "in one pass":
        monkeypatch.setattr(agents.stacked, "IN_TURN", set())


IN_TURN = pytest.mark.parametrize("way", ["in turn"], indirect=True)
IN_ONE_PASS = pytest.mark.parametrize("way", ["in one pass"], indirect=True)


def shape_of(
    frame_shape: tuple[int, ...], precision: str, device: torch.device, seed: int
) -> dict[str, Any]:
    return {
        "stack": STACK,
        "frame_shape": frame_shape,
        "num_actions": NUM_ACTIONS,
        "device": device,
        "precision": precision,
        "rng": np.random.default_rng(seed),
    }


def stacked_of(
    seed: int = 0,
    *,
    num_learners: int = NUM_LEARNERS,
    frame_shape: tuple[int, ...] = (6,),
    precision: str = "float32",
    device: torch.device = CPU,
    **config: Any,
) -> StackedLearner:
    return StackedLearner(
        LearnerConfig(**{**UNITS, **config}),
        num_learners=num_learners,
        **shape_of(frame_shape, precision, device, seed),
    )


def learner_of(
    seed: int = 0, *, frame_shape: tuple[int, ...] = (6,), precision: str = "float32", **config: Any
) -> Learner:
    return Learner(
        LearnerConfig(**{**UNITS, **config}), **shape_of(frame_shape, precision, CPU, seed)
    )


def separate_ones(stacked: StackedLearner, **arguments: Any) -> list[Learner]:
    """K learners of their own that start with the weights of the stacked ones."""
    learners = [learner_of(seed=100 + k, **arguments) for k in range(stacked.num_learners)]
    for k, learner in enumerate(learners):
        learner.online.load_state_dict(stacked.online.weights_of(k))
        learner.sync_target()
    return learners


def settle(stacked: StackedLearner) -> None:
    """Make hidden units active on all states or on none.

    Where a unit is between the two, rounding decides, and what it decides grows from update to
    update: networks that are equal up to rounding part after some tens of them.
    """
    layers = [
        layer
        for layer in stacked.online.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
        and layer.weight.shape[1] not in (1, NUM_ACTIONS)
    ]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(0.1)
            assert layer.bias is not None
            layer.bias.fill_(1.0)
            layer.bias[:, ::2] = -1.0


def states_of(seed: int, size: int, frame_shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    shape = (size, STACK, *frame_shape)
    if len(frame_shape) == 2:
        return torch.randint(256, shape, dtype=torch.uint8, generator=rng)
    return torch.randn(shape, generator=rng)


def minibatch(
    seed: int,
    *,
    size: int = 8,
    num_learners: int = NUM_LEARNERS,
    frame_shape: tuple[int, ...] = (6,),
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1000 + seed)
    actions = torch.randint(NUM_ACTIONS, (size,), generator=rng)
    return (
        states_of(seed, size, frame_shape),
        actions,
        torch.randn(num_learners, size, generator=rng),
    )


def trained(learner: StackedLearner, updates: int, frame_shape: tuple[int, ...] = (6,)) -> None:
    for update in range(updates):
        learner.update(*minibatch(update, frame_shape=frame_shape))
        learner.count_updates(1)


@IN_ONE_PASS
@NETWORKS
@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": "adam"},
        {"optimizer": "rmsprop", "loss_reduction": "sum", "optimizer_epsilon": 0.01},
    ],
    ids=["adam", "rmsprop"],
)
@FRAME_SHAPES
def test_each_learns_what_it_would_alone(
    network: str, config: dict[str, Any], frame_shape: tuple[int, ...]
) -> None:
    settings: dict[str, Any] = {
        **config,
        "network": network,
        "frame_shape": frame_shape,
        "target_sync_updates": 7,
    }
    stacked = stacked_of(**settings)
    settle(stacked)
    start = {name: weights.clone() for name, weights in stacked.online.state_dict().items()}
    alone = separate_ones(stacked, **settings)
    for update in range(20):
        states, actions, targets = minibatch(update, frame_shape=frame_shape)
        losses, values = stacked.update(states, actions, targets)
        stacked.count_updates(1)
        assert losses.shape == (NUM_LEARNERS,)
        assert values.shape == targets.shape
        for k, learner in enumerate(alone):
            loss, value = learner.update(states, actions, targets[k])
            learner.count_updates(1)
            torch.testing.assert_close(losses[k], loss, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values[k], value, atol=1e-5, rtol=1e-5)
    states = states_of(99, 5, frame_shape)
    values, target_values = stacked.values(states), stacked.target_values(states)
    assert not torch.allclose(values, target_values, atol=1e-2)
    for k, learner in enumerate(alone):
        torch.testing.assert_close(values[k], learner.values(states), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            target_values[k], learner.target_values(states), atol=1e-5, rtol=1e-5
        )
        for name, weight in learner.online.state_dict().items():
            apart = torch.linalg.norm(stacked.online.weights_of(k)[name] - weight)
            moved = torch.linalg.norm(start[f"networks.{name}"][k] - weight)
            assert apart < 1e-2 * moved


@IN_TURN
@NETWORKS
@OPTIMIZERS
@PRECISIONS
@FRAME_SHAPES
def test_in_turn_each_learns_what_it_would_alone_to_the_last_bit(
    network: str, optimizer: str, precision: str, frame_shape: tuple[int, ...]
) -> None:
    settings: dict[str, Any] = {
        "network": network,
        "optimizer": optimizer,
        "precision": precision,
        "frame_shape": frame_shape,
        "target_sync_updates": 3,
    }
    stacked = stacked_of(**settings)
    alone = separate_ones(stacked, **settings)
    for update in range(5):
        states, actions, targets = minibatch(update, frame_shape=frame_shape)
        weights = torch.rand(len(actions), generator=torch.Generator().manual_seed(update))
        losses, values = stacked.update(states, actions, targets, weights)
        stacked.count_updates(1)
        for k, learner in enumerate(alone):
            loss, value = learner.update(states, actions, targets[k], weights)
            learner.count_updates(1)
            assert torch.equal(losses[k], loss)
            assert torch.equal(values[k], value)
    states = states_of(99, 5, frame_shape)
    for k, learner in enumerate(alone):
        assert same(stacked.online.weights_of(k), dict(learner.online.state_dict()))
        assert torch.equal(stacked.values(states)[k], learner.values(states))
        assert torch.equal(stacked.target_values(states)[k], learner.target_values(states))
        of_one = stacked.values_of(torch.full((len(states),), k), states)
        assert torch.equal(of_one, learner.values(states))


def first_update(learner: Learner, *batch: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients of an update; of K learners a row for each."""
    _, values = learner.update(*batch)
    leading = values.dim() - 1
    gradients = [weight.grad for weight in learner.online.parameters() if weight.grad is not None]
    return values, torch.cat([gradient.flatten(leading) for gradient in gradients], dim=-1)


@IN_ONE_PASS
@NETWORKS
@FRAME_SHAPES
def test_in_bfloat16_they_differ_from_those_alone_by_its_rounding(
    network: str, frame_shape: tuple[int, ...]
) -> None:
    settings: dict[str, Any] = {"network": network, "frame_shape": frame_shape}
    errors = []
    for seed in range(3):
        stacked = stacked_of(seed, **settings, precision="bfloat16")
        states, actions, targets = minibatch(seed, frame_shape=frame_shape)
        one, exact = (
            [
                first_update(learner, states, actions, targets[k])
                for k, learner in enumerate(separate_ones(stacked, **settings, precision=precision))
            ]
            for precision in ("bfloat16", "float32")
        )
        for of_all, of_one, of_exact in zip(
            first_update(stacked, states, actions, targets),
            map(torch.stack, zip(*one, strict=True)),
            map(torch.stack, zip(*exact, strict=True)),
            strict=True,
        ):
            errors.append([torch.linalg.norm(each - of_exact) for each in (of_all, of_one)])
            assert not torch.equal(of_all, of_exact)
    together, alone = torch.tensor(errors).square().sum(0).sqrt()
    assert together < 1.5 * alone


@OPTIMIZERS
@FRAME_SHAPES
@pytest.mark.parametrize("strange", [5.0, float("nan")])
def test_the_targets_of_one_do_not_reach_the_others_by_a_bit(
    optimizer: str, frame_shape: tuple[int, ...], strange: float
) -> None:
    usual, other = (stacked_of(optimizer=optimizer, frame_shape=frame_shape) for _ in range(2))
    for update in range(5):
        states, actions, targets = minibatch(update, frame_shape=frame_shape)
        losses, values = usual.update(states, actions, targets)
        targets[1] += strange
        others_losses, others_values = other.update(states, actions, targets)
        for k in (0, 2):
            assert torch.equal(losses[k], others_losses[k])
            assert torch.equal(values[k], others_values[k])
        assert not torch.equal(losses[1], others_losses[1])
    for k in (0, 2):
        assert same(usual.online.weights_of(k), other.online.weights_of(k))
    assert not same(usual.online.weights_of(1), other.online.weights_of(1))


def test_initial_weights_are_drawn_for_each_and_the_generator_decides_them() -> None:
    one, again, other = (stacked_of(seed) for seed in (5, 5, 6))
    assert same(one.state_dict(), again.state_dict())
    drawn = [
        weights
        for learner in (one, other)
        for k in range(NUM_LEARNERS)
        for name, weights in learner.online.weights_of(k).items()
        if name.endswith("0.1.weight")
    ]
    assert len(drawn) == 2 * NUM_LEARNERS
    for i, weights in enumerate(drawn):
        assert not any(torch.equal(weights, others) for others in drawn[:i])


@PRECISIONS
@FRAME_SHAPES
@pytest.mark.parametrize("learners", [[2], [0, 0], [2, 0, 2, 1, 0]])
def test_each_state_gets_the_values_of_its_learner(
    precision: str, frame_shape: tuple[int, ...], learners: list[int]
) -> None:
    stacked = stacked_of(precision=precision, frame_shape=frame_shape)
    states = states_of(0, len(learners), frame_shape)
    values = stacked.values_of(torch.tensor(learners), states)
    assert values.shape == (len(learners), NUM_ACTIONS)
    assert values.dtype == torch.float32
    assert not values.requires_grad
    every = stacked.values(states)
    expected = torch.stack([every[k, row] for row, k in enumerate(learners)])
    # Rows of other minibatches.
    torch.testing.assert_close(values, expected, **ROUNDED[precision])


@OPTIMIZERS
@PRECISIONS
@FRAME_SHAPES
def test_restored_learners_continue_bit_for_bit(
    tmp_path: Path, optimizer: str, precision: str, frame_shape: tuple[int, ...]
) -> None:
    settings: dict[str, Any] = {
        "optimizer": optimizer,
        "precision": precision,
        "frame_shape": frame_shape,
        "target_sync_updates": 3,
    }
    stacked, other = (stacked_of(seed, **settings) for seed in (0, 1))
    trained(stacked, 4, frame_shape)
    other.load_state_dict(through_disk(stacked.state_dict(), tmp_path))
    assert same(other.state_dict(), stacked.state_dict())
    states = states_of(50, 5, frame_shape)
    for update in range(10, 13):
        batch = minibatch(update, frame_shape=frame_shape)
        assert all(map(torch.equal, stacked.update(*batch), other.update(*batch)))
        stacked.count_updates(1)
        other.count_updates(1)
        assert torch.equal(stacked.target_values(states), other.target_values(states))
    assert same(other.state_dict(), stacked.state_dict())


class Operations(TorchDispatchMode):
    """Names of the operations that are carried out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@IN_ONE_PASS
@OPTIMIZERS
@PRECISIONS
def test_an_update_is_one_pass_for_all_and_reads_nothing_back(
    optimizer: str, precision: str
) -> None:
    counts = []
    for num_learners in (2, 11):
        stacked = stacked_of(
            num_learners=num_learners,
            optimizer=optimizer,
            precision=precision,
            frame_shape=(36, 36),
        )
        batch = minibatch(0, num_learners=num_learners, frame_shape=(36, 36))
        with Operations() as operations:
            stacked.update(*batch)
        assert not {"_local_scalar_dense", "nonzero", "_unique2"} & set(operations.names)
        assert operations.names.count("convolution") == 3
        assert operations.names.count("convolution_backward") == 3
        counts.append(len(operations.names))
    assert counts[0] == counts[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@OPTIMIZERS
def test_captured_learners_learn_and_act_as_others(optimizer: str) -> None:
    device = torch.device("cuda")
    settings: dict[str, Any] = {"optimizer": optimizer, "frame_shape": (36, 36), "device": device}
    eager, captured = stacked_of(**settings), stacked_of(**settings)
    graph = Captured(captured.update, changes=captured.tensors)
    for update in range(10):
        batch = [tensor.to(device) for tensor in minibatch(update, frame_shape=(36, 36))]
        for one, other in zip(eager.update(*batch), graph(*batch), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    states = states_of(99, 4, (36, 36)).to(device)
    learners = torch.tensor([2, 0, 0, 1], device=device)
    values = Captured(captured.values_of)(learners, states)
    every = captured.values(states)
    expected = torch.stack([every[k, row] for row, k in enumerate(learners.tolist())])
    torch.testing.assert_close(values, expected, atol=1e-3, rtol=1e-3)
