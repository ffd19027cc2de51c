"""The Q-networks: their sizes, their first weights, what goes in and what comes out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.networks import HEADS, Dense, DuelingHead, build_network
from ebu.errors import UsageError

ATARI: dict[str, Any] = {"stack": 4, "frame_shape": (84, 84)}
SMALL: dict[str, Any] = {"stack": 4, "frame_shape": (36, 36)}
FLAT: dict[str, Any] = {"stack": 1, "frame_shape": (6,)}


def network_of(name: str = "nature", seed: int = 0, **shape: Any) -> nn.Module:
    arguments = {**SMALL, "num_actions": 5, **shape}
    return build_network(name, generator=torch.Generator().manual_seed(seed), **arguments)


def layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def pixels(count: int, stack: int, frame_shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, stack, *frame_shape), dtype=torch.uint8, generator=rng)


def test_the_nature_network_has_the_sizes_of_the_paper() -> None:
    network = network_of(**ATARI, num_actions=18)
    assert sum(weight.numel() for weight in network.parameters()) == 1_693_362
    assert [tuple(layer.weight.shape) for layer in layers(network)] == [
        (32, 4, 8, 8),
        (64, 32, 4, 4),
        (64, 64, 3, 3),
        (512, 3136),
        (18, 512),
    ]
    strides = [layer.stride[0] for layer in layers(network) if isinstance(layer, nn.Conv2d)]
    assert strides == [4, 2, 1]


def test_the_dueling_network_has_two_streams_of_512_units_over_the_same_convolutions() -> None:
    network = network_of("dueling", **ATARI, num_actions=18)
    convolutions = 8_224 + 32_832 + 36_928
    streams = 2 * (3136 * 512 + 512) + (512 * 1 + 1) + (512 * 18 + 18)
    assert sum(weight.numel() for weight in network.parameters()) == convolutions + streams


def test_the_dueling_head_is_value_plus_advantage_minus_mean_advantage() -> None:
    head = DuelingHead(num_features=7, num_actions=4)
    features = torch.randn(5, 7)
    value, advantage = head.value(features), head.advantage(features)
    assert value.shape == (5, 1)
    expected = value + advantage - advantage.mean(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(features).mean(dim=1), value[:, 0])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [ATARI, SMALL, FLAT], ids=["atari", "small", "flat"])
def test_one_float32_value_for_each_action(name: str, shape: dict[str, Any]) -> None:
    states = torch.rand(3, shape["stack"], *shape["frame_shape"])
    values = network_of(name, **shape)(states)
    assert values.shape == (3, 5)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("side", [84, 36, 37, 90])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_first_convolution_is_torchs_on_pixels_divided_by_255(
    side: int, dtype: torch.dtype
) -> None:
    network = network_of(stack=4, frame_shape=(side, side))
    first = layers(network)[0]
    assert isinstance(first, nn.Conv2d)
    # A view into longer windows, as a replay memory gives it.
    states = pixels(3, 5, (side, side)).to(dtype)[:, 1:]
    plain = functional.conv2d(states.float() / 255, first.weight, first.bias, stride=4)
    torch.testing.assert_close(first(states), plain, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(plain)
    ours, theirs = (
        torch.autograd.grad((out * weight).sum(), (first.weight, first.bias))
        for out in (first(states), plain)
    )
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_bytes_and_the_same_pixels_in_float_give_the_same_values(name: str) -> None:
    network, states = network_of(name), pixels(6, **SMALL)
    torch.testing.assert_close(network(states.float()), network(states))


def test_a_dense_layer_is_a_linear_one() -> None:
    layer, features = Dense(7, 3), torch.randn(5, 7)
    expected = features @ layer.weight.t() + layer.bias
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_states_are_left_as_they_are(dtype: torch.dtype) -> None:
    states = pixels(2, **SMALL).to(dtype)
    before = states.clone()
    network_of()(states)
    assert torch.equal(states, before)


@pytest.mark.parametrize("shape", [SMALL, FLAT], ids=["image", "flat"])
def test_every_frame_of_the_stack_counts(shape: dict[str, Any]) -> None:
    network = network_of(**shape)
    states = torch.rand(1, shape["stack"], *shape["frame_shape"])
    for frame in range(shape["stack"]):
        other = states.clone()
        other[:, frame] += 1.0
        assert not torch.equal(network(other), network(states))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [ATARI, FLAT], ids=["atari", "flat"])
def test_weights_are_he_uniform_and_biases_a_tenth(name: str, shape: dict[str, Any]) -> None:
    for layer in layers(network_of(name, **shape)):
        fan_in = layer.weight[0].numel()
        bound = math.sqrt(6 / fan_in)
        weights = layer.weight.detach().flatten()
        assert bool((weights.abs() <= bound).all())
        # A uniform variable spreads over bound / √3, within six deviations of such an estimate:
        # a right initialisation fails once in 500 million layers.
        spread = float(weights.square().mean().sqrt()) * math.sqrt(3) / bound
        assert abs(spread - 1) < 6 * math.sqrt(0.2 / len(weights))
        assert layer.bias is not None
        assert bool(layer.bias.eq(0.1).all())


@pytest.mark.parametrize("name", HEADS)
def test_the_seed_decides_the_weights(name: str) -> None:
    torch.manual_seed(17)  # The global generator does not matter.
    one = network_of(name, seed=3).state_dict()
    torch.manual_seed(18)
    again, other = network_of(name, seed=3).state_dict(), network_of(name, seed=4).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as refusal:
        network_of("natur")
    message = str(refusal.value)
    assert "natur" in message
    assert all(name in message for name in HEADS)
    assert "\n" not in message


@pytest.mark.parametrize("frame_shape", [(35, 84), (84, 35), (8, 8), (1, 1)])
def test_an_image_too_small_for_the_convolutions_is_refused(frame_shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"small") as refusal:
        network_of(stack=4, frame_shape=frame_shape)
    assert "36" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_smallest_image_the_convolutions_take() -> None:
    assert network_of(stack=4, frame_shape=(36, 36))(pixels(1, 4, (36, 36))).shape == (1, 5)
