"""The Q-networks: their sizes, their first weights, what goes in and what comes out."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.architectures import ARCHITECTURES
from agents.impala import ResidualBlock
from agents.networks import Dense, DuelingHead, GridCells, QNetwork, build_network
from ebu.errors import UsageError

ATARI: dict[str, Any] = {"stack": 4, "frame_shape": (84, 84)}
SMALL: dict[str, Any] = {"stack": 4, "frame_shape": (36, 36)}
FLAT: dict[str, Any] = {"stack": 1, "frame_shape": (6,)}


NAMES = [*ARCHITECTURES, "6-5-4/7", "nature@tucker=16,32,32,32,svd=64", "dueling@svd=8"]


def network_of(name: str = "nature", seed: int = 0, **shape: Any) -> QNetwork:
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
    head = DuelingHead(ARCHITECTURES["dueling"], num_features=7, num_actions=4, quantiles=1)
    features = torch.randn(5, 7)
    value, advantage = head.value(features), head.advantage(features)
    assert value.shape == (5, 1)
    expected = value + advantage - advantage.mean(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(features).mean(dim=1), value[:, 0])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in NAMES
        for shape in (ATARI, SMALL, FLAT)
        # Flat observations have no convolutions to factorise.
        if shape is not FLAT or "tucker" not in name
    ],
)
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
    assert first.bias is not None
    parameters = (first.weight, first.bias)
    ours, theirs = (
        torch.autograd.grad((out * weight).sum(), parameters) for out in (first(states), plain)
    )
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_and_the_same_pixels_in_float_give_the_same_values(name: str) -> None:
    network, states = network_of(name), pixels(6, **SMALL)
    torch.testing.assert_close(network(states.float()), network(states))


@pytest.mark.parametrize("name", ["nature", "dueling", "net2"])
@pytest.mark.parametrize("shape", [ATARI, FLAT], ids=["atari", "flat"])
def test_weights_are_he_uniform_and_biases_a_tenth(name: str, shape: dict[str, Any]) -> None:
    first, *others = layers(network_of(name, **shape))
    for layer in (first, *others):
        fan_in = layer.weight[0].numel()
        bound = math.sqrt(6 / fan_in)
        weights = layer.weight.detach().flatten()
        assert bool((weights.abs() <= bound).all())
        # A uniform variable spreads over bound / √3, within six deviations of such an estimate:
        # a right initialisation fails once in 500 million layers.
        spread = float(weights.square().mean().sqrt()) * math.sqrt(3) / bound
        assert abs(spread - 1) < 6 * math.sqrt(0.2 / len(weights))
        assert layer.bias is not None
        if layer is not first or shape is ATARI:
            assert bool(layer.bias.eq(0.1).all())


def test_units_over_flat_observations_bend_at_all_distances() -> None:
    first, *_ = layers(network_of("nature", **FLAT))
    assert first.bias is not None
    biases = first.bias.detach()
    # Of 128 uniform biases some lie in each tenth, but for one network in 70,000.
    assert bool((torch.histc(biases, bins=10, min=-2, max=2) > 0).all())
    again, *_ = layers(network_of("nature", **FLAT))
    assert again.bias is not None
    assert torch.equal(again.bias, biases)


@pytest.mark.parametrize("name", ["nature", "dueling", "16-8-8/16"])
@pytest.mark.parametrize("shape", [ATARI, FLAT], ids=["atari", "flat"])
def test_the_output_scale_is_that_of_the_first_action_values(
    name: str, shape: dict[str, Any]
) -> None:
    whole, small = network_of(name, **shape), network_of(name, output_scale=0.25, **shape)
    states = pixels(6, shape["stack"], shape["frame_shape"]).float()
    torch.testing.assert_close(small(states), 0.25 * whole(states))
    different = [
        key
        for key, weights in whole.state_dict().items()
        if not torch.equal(weights, small.state_dict()[key])
    ]
    assert len(different) == (4 if name == "dueling" else 2)


@pytest.mark.parametrize("name", NAMES)
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
    assert all(name in message for name in ARCHITECTURES)
    assert message.endswith("did you mean nature?")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("0-16-16/64", "unknown network"),
        ("16-16/64", "unknown network"),
        ("nature@half", "names no ranks"),
        ("nature@svd=0", "names no ranks"),
        ("nature@tucker=1,2,3", "names no ranks"),
        ("nature@tucker=1,2,3,4svd=5", "names no ranks"),
        ("nature@svd=513", "512 at most"),
        ("nature@tucker=33,64,64,64", "32,64 at most"),
        # Behind one channel in, a kernel of 4 × 4 pixels distinguishes 16.
        ("nature@tucker=1,17,64,64", "32,16 at most"),
    ],
)
def test_widths_and_ranks_that_are_none_are_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refusal:
        network_of(name)
    assert "\n" not in str(refusal.value)


def test_a_rank_above_the_number_of_features_is_refused() -> None:
    assert network_of("nature@svd=64")(pixels(1, **SMALL)).shape == (1, 5)
    with pytest.raises(UsageError, match="64 at most"):
        network_of("nature@svd=65")


def test_flat_observations_leave_no_convolutions_to_factorise() -> None:
    with pytest.raises(UsageError, match="convolutions"):
        network_of("nature@tucker=16,32,32,32", **FLAT)


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_is_a_linear_one(bias: bool) -> None:
    layer, features = Dense(7, 3, bias=bias), torch.randn(5, 7)
    expected = functional.linear(features, layer.weight, layer.bias)
    torch.testing.assert_close(layer(features), expected)


def test_a_name_of_widths_gives_layers_of_these_widths() -> None:
    sizes = [tuple(layer.weight.shape) for layer in layers(network_of("6-5-4/7", **ATARI))]
    assert sizes == [(6, 4, 8, 8), (5, 6, 4, 4), (4, 5, 3, 3), (7, 4 * 7 * 7), (5, 7)]


def test_ranks_in_a_name_give_layers_of_these_ranks() -> None:
    network = network_of("nature@tucker=9,10,11,12,svd=13", **ATARI)
    assert [tuple(layer.weight.shape) for layer in layers(network)] == [
        (32, 4, 8, 8),
        (9, 32, 1, 1),
        (10, 9, 4, 4),
        (64, 10, 1, 1),
        (11, 64, 1, 1),
        (12, 11, 3, 3),
        (64, 12, 1, 1),
        (13, 3136),
        (512, 13),
        (5, 512),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_outputs_are_computed_from(name: str) -> None:
    network, states = network_of(name, **ATARI), pixels(3, **ATARI)
    sizes = ARCHITECTURES.get(name, ARCHITECTURES["nature"])
    features = network.features(states)
    assert torch.equal(features.outputs, network(states))
    if name in ARCHITECTURES:
        grids = zip(sizes.filters, (20, 9, 7), strict=True)
        assert [tuple(layer.shape) for layer in features[:3]] == [(3, c, g, g) for c, g in grids]
        assert features.hidden.shape == (3, sizes.hidden * (2 if sizes.dueling else 1))
    for layer in features[:4]:
        assert bool((layer >= 0).all())
        assert bool((layer > 0).any())
    # Layer for layer the next one's input, so each can be compared and trained.
    torso: Any = network[0]
    assert torch.equal(torso[3](torso[2](features.conv1)), features.conv2)
    gradients = torch.autograd.grad(features.hidden.sum(), list(network[0].parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_a_network_over_flat_observations_has_no_feature_maps() -> None:
    with pytest.raises(UsageError, match="feature maps"):
        network_of(**FLAT).features(torch.rand(1, 1, 6))


@pytest.mark.parametrize("frame_shape", [(35, 84), (84, 35), (8, 8), (1, 1)])
def test_an_image_too_small_for_the_convolutions_is_refused(frame_shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"small") as refusal:
        network_of(stack=4, frame_shape=frame_shape)
    assert "36" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_impala_network_has_the_shape_of_its_paper_and_the_asked_width() -> None:
    for name, width in (("impala", 1), ("impala2", 2)):
        network = build_network(
            name, stack=4, frame_shape=(84, 84), num_actions=18, generator=torch.Generator()
        )
        channels, weights = (4, 16 * width, 32 * width, 32 * width), 0
        for inputs, outputs in itertools.pairwise(channels):
            weights += 9 * inputs * outputs + outputs + 4 * (9 * outputs**2 + outputs)
        # 84, 42, 21, 11 pixels a side.
        weights += channels[-1] * 11 * 11 * 512 + 512 + 512 * 18 + 18
        assert sum(weight.numel() for weight in network.parameters()) == weights
    states = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    values = network(states)
    assert values.shape == (3, 18)
    torch.testing.assert_close(network(states[1:2]), values[1:2], rtol=1e-4, atol=1e-4)
    # The division by 255: floats of another scale are other images.
    assert not torch.allclose(network(states.float() / 255), values)


def test_residual_blocks_start_as_the_identity_and_learn() -> None:
    network = network_of("impala", frame_shape=(36, 36))
    blocks = [each for each in network.modules() if isinstance(each, ResidualBlock)]
    assert len(blocks) == 6
    for block in blocks:
        maps = torch.randn(2, block.first.in_channels, 5, 5)
        assert torch.equal(block(maps), maps)
    network(pixels(2, 4, (36, 36))).sum().backward()
    for block in blocks:
        assert block.second.weight.grad is not None
        assert block.second.weight.grad.any()


def test_a_grid_network_keeps_small_cells_and_scales_bytes_by_their_logarithm() -> None:
    network = build_network(
        "grid", stack=2, frame_shape=(4, 5, 3), num_actions=6, generator=torch.Generator()
    )
    cells = torch.randint(0, 256, (7, 2, 4, 5, 3), dtype=torch.uint8)
    assert network(cells).shape == (7, 6)
    scaled = GridCells()(cells)
    assert scaled.shape == (7, 8, 5, 3)
    torch.testing.assert_close(scaled.flatten(), (cells.double() + 1).log2().flatten().float() / 8)
    # Each cell and channel counts.
    values = network(torch.zeros(1, 2, 4, 5, 3))
    for cell in range(2 * 4 * 5 * 3):
        one = torch.zeros(2 * 4 * 5 * 3)
        one[cell] = 1
        assert not torch.equal(network(one.view(1, 2, 4, 5, 3)), values)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("9999-9999-9999/9999", {}),
        ("impala9999", {}),
        ("9-9-9999/9999", {"frame_shape": (1 << 20,), "stack": 1}),
        ("nature", {"quantiles": 10**9}),
        ("dueling", {"num_actions": 10**9}),
    ],
)
def test_a_network_of_any_size_is_refused_before_it_takes_memory(
    name: str, shape: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"at most [\d,]+$"):
        network_of(name, **shape)


@pytest.mark.parametrize("sides", [(37, 53), (84, 85), (100, 36), (83, 91)])
@pytest.mark.parametrize("name", ["net3", "impala"])
def test_images_of_any_sides_fit_the_dense_layer(name: str, sides: tuple[int, int]) -> None:
    network = network_of(name, frame_shape=sides)
    assert network(pixels(2, 4, sides)).shape == (2, 5)
