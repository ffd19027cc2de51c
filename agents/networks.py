"""Q-networks by name; `agents.architectures` says what the names stand for.

Every network takes stacks (B, stack, *frame_shape), uint8 or float32, and returns (B, num_actions)
float32 action values, those with quantiles the means of their distributions. Images are divided by
255 inside.

The modules compute what torch's own do, in the forms that run fastest: benchmarks and reasons are
in docs/performance_design.md.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.architectures import KERNELS, STRIDES, Architecture, architecture
from agents.impala import ImpalaTorso
from ebu.errors import UsageError

SMALLEST_SIDE = 36
"""Side of the smallest image that the three convolutions leave a pixel of."""

MOST_WEIGHTS = 1 << 28
"""Of a network: 1 GiB in float32."""


class FirstConvolution(nn.Conv2d):
    """The convolution over frames as they are stored, pixels divided by 255.

    Its kernel is two strides wide, so over blocks of stride × stride pixels, each block one pixel
    of stack · stride² channels, it is a 2 × 2 convolution with stride 1: its channels fill the
    processor's vectors, where four would not. The division goes into the weights, which leaves
    bytes exact in bfloat16.
    """

    def __init__(self, stack: int, filters: int, stride: int) -> None:
        super().__init__(stack, filters, kernel_size=2 * stride, stride=stride)
        self.block = stride

    def forward(self, stacks: Tensor) -> Tensor:
        block, filters = self.block, self.out_channels
        # (filters, stack, 2, block, 2, block) -> (filters, 2, 2, stack · block²)
        weight = self.weight.unflatten(3, (2, block)).unflatten(2, (2, block)) / 255
        weight = weight.permute(0, 2, 4, 1, 3, 5).reshape(filters, 2, 2, -1)
        pixels = self._blocks(stacks).to(_arithmetic(stacks.device))
        pixels, weight = pixels.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)
        features: Tensor = functional.conv2d(pixels, weight, self.bias)
        return features

    def _blocks(self, stacks: Tensor) -> Tensor:
        """(B, stack, H, W) -> (B, H // block, W // block, stack · block²)."""
        block = self.block
        batch, stack, height, width = stacks.shape
        rows, columns = height // block, width // block
        stacks = stacks[:, :, : rows * block, : columns * block]
        if block == 4 and stacks.dtype == torch.uint8 and width % 4 == 0:
            # Four neighbouring bytes move as one word.
            words = stacks.view(torch.int32).view(batch, stack, rows, block, columns)
            words = words.permute(0, 2, 4, 1, 3).contiguous()
            return words.view(torch.uint8).flatten(3)
        blocks = stacks.unflatten(3, (columns, block)).unflatten(2, (rows, block))
        flat: Tensor = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return flat


def _arithmetic(device: torch.device) -> torch.dtype:
    """What layers compute in: float32, or autocast's dtype where it is on."""
    if not torch.is_autocast_enabled(device.type):
        return torch.float32
    dtype: torch.dtype = torch.get_autocast_dtype(device.type)
    return dtype


class Dense(nn.Linear):
    """A linear layer. In float32 on the CPU it multiplies from the left, weights times inputs:
    with minibatches of tens of rows that is up to three times as fast as inputs times weights.
    """

    def forward(self, features: Tensor) -> Tensor:
        if features.device.type == "cpu" and _arithmetic(features.device) == torch.float32:
            if self.bias is None:
                return torch.mm(self.weight, features.t()).t()
            return torch.addmm(self.bias[:, None], self.weight, features.t()).t()
        return super().forward(features)


class OutputLayer(nn.Linear):
    """The last linear layer, in float32 also under autocast.

    bfloat16 has 8 bits: action values of 6 would be multiples of 1/32, and most gaps between the
    best actions are smaller.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


class TuckerConvolution(nn.Sequential):
    """A convolution in Tucker-2 form (Kim et al. 2016): to fewer channels, convolve, to all."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, ranks: tuple[int, int]
    ) -> None:
        rank_in, rank_out = ranks
        super().__init__(
            nn.Conv2d(inputs, rank_in, kernel_size=1, bias=False),
            nn.Conv2d(rank_in, rank_out, kernel_size=kernel, stride=stride, bias=False),
            nn.Conv2d(rank_out, outputs, kernel_size=1),
        )


class LowRankDense(nn.Sequential):
    """A dense layer as the product of two: inputs to rank, rank to units."""

    def __init__(self, num_features: int, units: int, rank: int) -> None:
        super().__init__(Dense(num_features, rank, bias=False), Dense(rank, units))


class NatureTorso(nn.Sequential):
    """Three convolutions as of Mnih et al. 2015 (Nature), stacks in, flat features out.

    Features are ordered by pixel, then channel, as they lie in memory.
    """

    def __init__(self, sizes: Architecture, stack: int, frame_shape: tuple[int, ...]) -> None:
        super().__init__(
            FirstConvolution(stack, sizes.filters[0], stride=STRIDES[0]),
            nn.ReLU(inplace=True),
            _convolution(sizes, 1),
            nn.ReLU(inplace=True),
            _convolution(sizes, 2),
            nn.ReLU(inplace=True),
            FlattenPixels(),
        )
        sides = frame_shape
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            sides = tuple((side - kernel) // stride + 1 for side in sides)
        self.num_features = sizes.filters[-1] * math.prod(sides)

    def maps(self, stacks: Tensor) -> tuple[list[Tensor], Tensor]:
        """The convolutions' outputs (B, C, H, W) after their ReLU, and the flat features."""
        maps = []
        for layer in self:
            stacks = layer(stacks)
            if isinstance(layer, nn.ReLU):
                maps.append(stacks)
        return maps, stacks


def _convolution(sizes: Architecture, index: int) -> nn.Module:
    """The second or the third convolution (index 1 or 2), whole or in Tucker-2 form."""
    inputs, outputs = sizes.filters[index - 1 : index + 1]
    kernel, stride = KERNELS[index], STRIDES[index]
    if sizes.tucker is None:
        return nn.Conv2d(inputs, outputs, kernel_size=kernel, stride=stride)
    rank_in, rank_out = sizes.tucker[2 * index - 2 : 2 * index]
    return TuckerConvolution(inputs, outputs, kernel, stride, (rank_in, rank_out))


class FlattenPixels(nn.Module):
    """(B, C, H, W) -> (B, H · W · C), without a copy of what is stored channels last."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class VectorTorso(nn.Sequential):
    """One hidden layer over flat observations (B, stack, D), of 128 units in the full size."""

    def __init__(self, sizes: Architecture, stack: int, frame_shape: tuple[int, ...]) -> None:
        self.num_features = 2 * sizes.filters[-1]
        super().__init__(
            nn.Flatten(),
            Dense(stack * math.prod(frame_shape), self.num_features),
            nn.ReLU(inplace=True),
        )

    def spread(self, generator: torch.Generator) -> None:
        """Draw the biases uniformly from [-2, 2].

        With small equal biases all units bend next to the origin, and the network is almost linear
        along every ray from it: how far out a state lies is hard to learn.
        """
        for layer in self:
            if isinstance(layer, Dense):
                nn.init.uniform_(layer.bias, -2, 2, generator=generator)


class GridTorso(nn.Sequential):
    """One convolution over the cells of a grid (B, stack, C, H, W), of `filters[0]` channels."""

    def __init__(self, sizes: Architecture, stack: int, frame_shape: tuple[int, ...]) -> None:
        channels, height, width = frame_shape
        filters = sizes.filters[0]
        self.num_features = filters * height * width
        super().__init__(
            GridCells(),
            nn.Conv2d(stack * channels, filters, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            FlattenPixels(),
        )


class GridCells(nn.Module):
    """(B, stack, C, H, W) -> (B, stack · C, H, W), bytes on a logarithmic scale from 0 to 1.

    A byte is a code such as 1 to 10 as often as a brightness: divided by 255, codes would vanish.
    """

    def forward(self, stacks: Tensor) -> Tensor:
        cells = stacks.flatten(1, 2)
        if cells.dtype != torch.uint8:
            return cells
        return torch.log1p(cells.float()) / math.log(256)


class PlainHead(nn.Sequential):
    """One hidden layer, one value per action."""

    def __init__(self, sizes: Architecture, num_features: int, num_actions: int) -> None:
        super().__init__(
            Dense(num_features, sizes.hidden)
            if sizes.svd is None
            else LowRankDense(num_features, sizes.hidden, sizes.svd),
            nn.ReLU(inplace=True),
            OutputLayer(sizes.hidden, num_actions),
        )

    def hidden_and_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden layer (B, D) after its ReLU, and what `forward` returns."""
        dense, relu, last = self
        hidden = relu(dense(features))
        return hidden, last(hidden)


class DuelingHead(nn.Module):
    """State value plus mean-free advantages (Wang et al. 2016, eq. 9)."""

    def __init__(
        self, sizes: Architecture, num_features: int, num_actions: int, quantiles: int
    ) -> None:
        super().__init__()
        self.per_action = quantiles
        self.value = PlainHead(sizes, num_features, quantiles)
        self.advantage = PlainHead(sizes, num_features, num_actions * quantiles)

    def forward(self, features: Tensor) -> Tensor:
        return self._joined(self.value(features), self.advantage(features))

    def hidden_and_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both hidden layers (B, 2 D) after their ReLU, value first; what `forward` returns."""
        advantages_hidden, advantage = self.advantage.hidden_and_outputs(features)
        value_hidden, value = self.value.hidden_and_outputs(features)
        return torch.cat([value_hidden, advantages_hidden], dim=1), self._joined(value, advantage)

    def _joined(self, value: Tensor, advantage: Tensor) -> Tensor:
        """Of each quantile by itself."""
        advantage = advantage.unflatten(1, (-1, self.per_action))
        joined = value[:, None] + advantage - advantage.mean(dim=1, keepdim=True)
        return joined.flatten(1)


class Features(NamedTuple):
    """What a Q-network computes on the way to its outputs, each after its ReLU.

    | field | shape |
    | --- | --- |
    | conv1, conv2, conv3 | (B, C, H, W), H × W of 20 × 20, 9 × 9, 7 × 7 for images of 84 × 84 |
    | hidden | (B, D); of a dueling network (B, 2 D), the value's stream first |
    | outputs | (B, A), what the network returns |
    """

    conv1: Tensor
    conv2: Tensor
    conv3: Tensor
    hidden: Tensor
    outputs: Tensor


class QNetwork(nn.Sequential):
    """A torso and a head: stacks (B, stack, *frame_shape) in, action values (B, A) out.

    With N quantiles the head's outputs are (B, A · N), of each action the N quantiles in a row.
    """

    def __init__(
        self,
        torso: NatureTorso | VectorTorso | GridTorso | ImpalaTorso,
        head: PlainHead | DuelingHead,
        num_quantiles: int = 0,
    ) -> None:
        super().__init__(torso, head)
        self.num_quantiles = num_quantiles

    def forward(self, stacks: Tensor) -> Tensor:
        torso, head = self
        values: Tensor = head(torso(stacks))
        if self.num_quantiles:
            values = values.unflatten(1, (-1, self.num_quantiles)).mean(-1)
        return values

    def quantiles(self, stacks: Tensor) -> Tensor:
        """Quantiles (B, A, N) of the return of each action (Dabney et al. 2018)."""
        torso, head = self
        outputs: Tensor = head(torso(stacks)).unflatten(1, (-1, self.num_quantiles))
        return outputs

    def features(self, states: Tensor) -> Features:
        """The action values of states (B, stack, *frame_shape) with all that led to them.

        Raises `UsageError` for a network without three convolutions of one map each.
        """
        torso, head = self
        if not isinstance(torso, NatureTorso):
            raise UsageError("this network has no three feature maps: leave out what compares them")
        assert isinstance(head, PlainHead | DuelingHead)
        (conv1, conv2, conv3), flat = torso.maps(states)
        hidden, outputs = head.hidden_and_outputs(flat)
        if self.num_quantiles:
            outputs = outputs.unflatten(1, (-1, self.num_quantiles)).mean(-1)
        return Features(conv1, conv2, conv3, hidden, outputs)


def build_network(
    name: str,
    *,
    stack: int,
    frame_shape: tuple[int, ...],
    num_actions: int,
    generator: torch.Generator,
    output_scale: float = 1.0,
    quantiles: int = 0,
) -> QNetwork:
    """Build a Q-network: He-uniform weights and biases of 0.1, as the EBU paper's code.

    With `quantiles` > 0 it predicts that many quantiles of each action's return, and its outputs
    are their means.

    The weights and biases of the output layer are multiplied by `output_scale`. Two-axis frames get
    convolutions, grids (C, H, W) a single one, flat ones a hidden layer in their place, with biases
    in [-2, 2]. Residual blocks start as the identity.

    Raises `UsageError` for an unknown name, more than `MOST_WEIGHTS`, an image too small for the
    convolutions, and ranks of convolutions that flat frames leave out, or above the features.
    """
    assemble = partial(_assemble, name, stack, frame_shape, num_actions, quantiles)
    # A name may come from a stranger's file: its size is known before it takes any memory.
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in assemble().parameters())
    if weights > MOST_WEIGHTS:
        raise UsageError(
            f"network '{name}' has {weights:,} weights here: choose one of at most {MOST_WEIGHTS:,}"
        )
    network = assemble()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.1)
    torso, _ = network
    if isinstance(torso, VectorTorso):
        torso.spread(generator)
    if isinstance(torso, ImpalaTorso):
        torso.start_plain()
    with torch.no_grad():
        for stream in network.modules():
            if isinstance(stream, PlainHead):
                for each in stream[-1].parameters():
                    each.mul_(output_scale)
    channels_last: QNetwork = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def _assemble(
    name: str, stack: int, frame_shape: tuple[int, ...], num_actions: int, quantiles: int
) -> QNetwork:
    """A network before its weights are drawn; raises as `build_network`."""
    sizes = architecture(name)
    torso: NatureTorso | VectorTorso | GridTorso | ImpalaTorso
    if len(frame_shape) == 2 and sizes.impala:
        torso = ImpalaTorso(sizes, stack, frame_shape)
    elif len(frame_shape) == 2:
        if min(frame_shape) < SMALLEST_SIDE:
            raise UsageError(
                f"images of {frame_shape[0]}×{frame_shape[1]} pixels are too small for the "
                f"network's convolutions: each side needs at least {SMALLEST_SIDE}"
            )
        torso = NatureTorso(sizes, stack, frame_shape)
    else:
        if sizes.tucker is not None:
            raise UsageError(f"network '{name}': flat observations leave no convolutions to factor")
        torso = (GridTorso if len(frame_shape) == 3 else VectorTorso)(sizes, stack, frame_shape)
    if sizes.svd is not None and sizes.svd > torso.num_features:
        raise UsageError(
            f"network '{name}': rank {sizes.svd} of a dense layer over {torso.num_features} "
            f"features is too high: {torso.num_features} at most"
        )
    per_action = max(1, quantiles)
    return QNetwork(
        torso,
        DuelingHead(sizes, torso.num_features, num_actions, per_action)
        if sizes.dueling
        else PlainHead(sizes, torso.num_features, num_actions * per_action),
        quantiles,
    )
