"""Q-networks by name.

Every network takes stacks (B, stack, *frame_shape), uint8 or float32, and returns (B, num_actions)
float32 action values. Images are divided by 255 inside.

The modules compute what torch's own do, in the forms that run fastest: benchmarks and reasons are
in docs/performance.md.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ebu.errors import UsageError

HIDDEN_UNITS = 512
SMALLEST_SIDE = 36
"""Side of the smallest image that the three convolutions leave a pixel of."""


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
            return torch.addmm(self.bias[:, None], self.weight, features.t()).t()
        return super().forward(features)


class NatureTorso(nn.Sequential):
    """Three convolutions of Mnih et al. 2015 (Nature), stacks in, flat features out.

    Features are ordered by pixel, then channel, as they lie in memory.
    """

    def __init__(self, stack: int, frame_shape: tuple[int, ...]) -> None:
        super().__init__(
            FirstConvolution(stack, 32, stride=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(inplace=True),
            FlattenPixels(),
        )
        with torch.no_grad():
            self.num_features = int(self(torch.zeros(1, stack, *frame_shape)).shape[1])


class FlattenPixels(nn.Module):
    """(B, C, H, W) -> (B, H · W · C), without a copy of what is stored channels last."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class VectorTorso(nn.Sequential):
    """One hidden layer over flat observations (B, stack, D)."""

    def __init__(self, stack: int, frame_shape: tuple[int, ...]) -> None:
        self.num_features = 128
        super().__init__(
            nn.Flatten(),
            Dense(stack * math.prod(frame_shape), self.num_features),
            nn.ReLU(inplace=True),
        )


class PlainHead(nn.Sequential):
    """One hidden layer, one value per action."""

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__(
            Dense(num_features, HIDDEN_UNITS),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN_UNITS, num_actions),
        )


class DuelingHead(nn.Module):
    """State value plus mean-free advantages (Wang et al. 2016, eq. 9)."""

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__()
        self.value = PlainHead(num_features, 1)
        self.advantage = PlainHead(num_features, num_actions)

    def forward(self, features: Tensor) -> Tensor:
        advantage: Tensor = self.advantage(features)
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"nature": PlainHead, "dueling": DuelingHead}


def build_network(
    name: str,
    *,
    stack: int,
    frame_shape: tuple[int, ...],
    num_actions: int,
    generator: torch.Generator,
) -> nn.Module:
    """Build a Q-network: He-uniform weights and biases of 0.1, as the EBU paper's code.

    Two-axis frames get the Nature convolutions, flat ones a hidden layer in their place.

    Raises `UsageError` for an unknown name or an image too small for the convolutions.
    """
    if name not in HEADS:
        raise UsageError(f"unknown network '{name}': choose one of {', '.join(HEADS)}")
    torso: NatureTorso | VectorTorso
    if len(frame_shape) == 2:
        if min(frame_shape) < SMALLEST_SIDE:
            raise UsageError(
                f"images of {frame_shape[0]}×{frame_shape[1]} pixels are too small for the "
                f"network's convolutions: each side needs at least {SMALLEST_SIDE}"
            )
        torso = NatureTorso(stack, frame_shape)
    else:
        torso = VectorTorso(stack, frame_shape)
    network = nn.Sequential(torso, HEADS[name](torso.num_features, num_actions))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            assert module.bias is not None
            nn.init.constant_(module.bias, 0.1)
    channels_last: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last
