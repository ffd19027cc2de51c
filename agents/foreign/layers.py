"""The layers of a policy from elsewhere: as one of this project's networks, or as they are.

Stable-Baselines3 and CleanRL build the same two shapes: three convolutions over stacked frames with
dense layers after them, or dense layers alone over numbers. What has the form of a network in
`agents.architectures` becomes that network, with the same outputs; anything else is computed by
`PlainPolicy`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.architectures import ARCHITECTURES, KERNELS, STRIDES, Architecture, architecture
from agents.networks import build_network
from ebu.errors import EbuError, UsageError

Activation = Literal["ReLU", "Tanh"]
ACTIVATIONS = {"ReLU": torch.relu, "Tanh": torch.tanh}
Weights = Mapping[str, Tensor]
TOLERANCE = 1e-6
"""Largest difference of an output from its own layers', relative to the largest output above 1."""


@dataclass(frozen=True)
class Layer:
    """A convolution, whose weight has four axes, or a dense layer, with two; and its bias."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Layers:
    """A policy's layers in order: convolutions, then dense ones, an activation between any two.

    `divided`: pixels are divided by 255 before the first layer.
    """

    convolutions: tuple[Layer, ...]
    dense: tuple[Layer, ...]
    activation: Activation
    divided: bool = True

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the last layer."""
        return len(self.dense[-1].weight)

    @property
    def stack(self) -> int | None:
        """Frames in a state; None where the first layer is a dense one."""
        return self.convolutions[0].weight.shape[1] if self.convolutions else None


def layers_in(weights: Weights, prefix: str) -> list[Layer]:
    """The layers of a `Sequential`, in order: `prefix` followed by a number and `.weight`, `.bias`.

    With an empty rest the prefix is that of a single layer: `actor.weight`.

    Raises ValueError for a layer without a bias or of other dimensions.
    """
    found = {}
    for name in weights:
        if named := re.fullmatch(rf"{re.escape(prefix)}([0-9]{{0,4}})\.?weight", name):
            found[int(named[1] or 0)] = name.removesuffix("weight")
    layers = []
    for _, name in sorted(found.items()):
        weight, bias = weights[f"{name}weight"], weights.get(f"{name}bias")
        if weight.ndim not in (2, 4) or bias is None or bias.shape != weight.shape[:1]:
            raise ValueError(f"{prefix} has a layer that is neither dense nor a convolution")
        layers.append(Layer(weight, bias))
    return layers


def check_layers(layers: Layers) -> Layers:
    """The layers themselves; raises ValueError where they do not follow each other."""
    if layers.convolutions:
        kernels = [tuple(each.weight.shape[2:]) for each in layers.convolutions]
        if kernels != [(size, size) for size in KERNELS]:
            raise ValueError(f"its convolutions have kernels {kernels}, not 8×8, 4×4 and 3×3")
    if not layers.dense or any(layer.weight.ndim != 2 for layer in layers.dense):
        raise ValueError("its last layers are not dense")
    for part in (layers.convolutions, layers.dense):
        for before, after in itertools.pairwise(part):
            if after.weight.shape[1] != len(before.weight):
                raise ValueError("its layers do not follow each other")
    if any(0 in layer.weight.shape for layer in (*layers.convolutions, *layers.dense)):
        raise ValueError("it has an empty layer")
    return layers


def build(layers: Layers, stack: int, frame_shape: tuple[int, ...]) -> tuple[str | None, nn.Module]:
    """The network of these layers, with its name if it is one of this project's.

    | argument | meaning |
    | --- | --- |
    | stack, frame_shape | of the states it is to take |

    Raises `UsageError` for layers that take other states.
    """
    found = PlainPolicy(layers)
    try:
        with torch.no_grad():
            found(torch.zeros(1, stack, *frame_shape))
    except RuntimeError:
        takes = (
            f"{layers.stack} frames"
            if layers.convolutions
            else f"{layers.dense[0].weight.shape[1]} numbers"
        )
        raise UsageError(
            f"it takes states of {takes}, and the game shows {stack} × {list(frame_shape)}: name "
            "the game it was trained on with --game"
        ) from None
    name = known_name(layers, frame_shape)
    return name, found if name is None else _known(name, layers, stack, frame_shape)


def known_name(layers: Layers, frame_shape: tuple[int, ...]) -> str | None:
    """The name of the network in `agents.architectures` with this form; None if there is none."""
    widths = [len(each.weight) for each in layers.convolutions]
    hidden = [len(each.weight) for each in layers.dense[:-1]]
    if len(frame_shape) == 2 and len(widths) == 3 and len(hidden) == 1:
        first, second, third = widths
    # Over numbers the place of the convolutions is taken by a layer twice as wide as the last.
    elif len(frame_shape) == 1 and not widths and len(hidden) == 2 and hidden[0] % 2 == 0:
        first = second = third = hidden[0] // 2
    else:
        return None
    sizes = Architecture((first, second, third), hidden[-1])
    named = [name for name, known in ARCHITECTURES.items() if known == sizes and widths]
    name = named[0] if named else f"{first}-{second}-{third}/{sizes.hidden}"
    try:
        return name if layers.activation == "ReLU" and architecture(name) == sizes else None
    except UsageError:
        return None


def _known(name: str, layers: Layers, stack: int, frame_shape: tuple[int, ...]) -> nn.Module:
    """The network of this name with these weights, checked to have the same outputs."""
    network = build_network(
        name,
        stack=stack,
        frame_shape=frame_shape,
        num_actions=layers.num_outputs,
        generator=torch.Generator(),
    )
    weights = [layer.weight for layer in (*layers.convolutions, *layers.dense)]
    if convolutions := len(layers.convolutions):
        if not layers.divided:
            weights[0] = weights[0] * 255
        # (units, channels · pixels) -> (units, pixels · channels)
        by_channel = weights[convolutions].unflatten(1, (len(weights[convolutions - 1]), -1))
        weights[convolutions] = by_channel.transpose(1, 2).flatten(1)
    _copy(network, weights, layers)
    _check_same(layers, network, stack, frame_shape)
    return network


@torch.no_grad()
def _copy(network: nn.Module, weights: Sequence[Tensor], layers: Layers) -> None:
    """Give a network these weights, and the biases of the layers."""
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    biases = [layer.bias for layer in (*layers.convolutions, *layers.dense)]
    for module, weight, bias in zip(modules, weights, biases, strict=True):
        module.weight.copy_(weight)
        assert module.bias is not None
        module.bias.copy_(bias)


def _check_same(
    layers: Layers, network: nn.Module, stack: int, frame_shape: tuple[int, ...], count: int = 32
) -> None:
    """Raise `EbuError` unless a network's outputs on random states are those of the layers.

    They may differ by `TOLERANCE`, or by a few times what rounding costs the layers themselves.
    """
    drawn = torch.randint(
        256, (count, stack, *frame_shape), generator=torch.Generator().manual_seed(0)
    )
    states = drawn.to(torch.uint8) if len(frame_shape) == 2 else drawn / 64 - 2
    with torch.no_grad():
        exact = PlainPolicy(layers).double()(states)
        rounded, found = PlainPolicy(layers)(states), network(states)
    scale = exact.abs().max().clamp_min(1)
    rounding, difference = (
        float((outputs - exact).abs().max() / scale) for outputs in (rounded, found)
    )
    if not difference <= max(TOLERANCE, 4 * rounding):
        raise EbuError(
            f"its weights give outputs here that differ by {difference:.2g}: they are not finite, "
            "or this machine computes wrongly"
        )


class PlainPolicy(nn.Module):
    """Layers as they are: stacks (B, stack, *frame_shape) in, outputs (B, A) float32 out."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.activation = layers.activation
        self.divided = layers.divided and bool(layers.convolutions)
        self.convolutions = nn.ModuleList()
        for layer, stride in zip(layers.convolutions, STRIDES, strict=False):
            filters, inputs, *kernel = layer.weight.shape
            self.convolutions.append(nn.Conv2d(inputs, filters, (kernel[0], kernel[1]), stride))
        self.dense = nn.ModuleList()
        for layer in layers.dense:
            units, inputs = layer.weight.shape
            self.dense.append(nn.Linear(inputs, units))
        _copy(self, [layer.weight for layer in (*layers.convolutions, *layers.dense)], layers)

    def forward(self, stacks: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        # In the weights' arithmetic: float32, or float64 where that is compared with.
        features = stacks.to(self.dense[-1].weight.dtype)  # type: ignore[arg-type]
        if self.divided:
            features = features / 255
        for convolution in self.convolutions:
            features = activation(convolution(features))
        features = features.flatten(1)
        *hidden, last = self.dense
        for dense in hidden:
            features = activation(dense(features))
        outputs: Tensor = last(features)
        return outputs
