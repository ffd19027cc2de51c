"""Q-networks by name.

Every network takes stacks (B, stack, *frame_shape), uint8 or float32, and returns (B, num_actions)
float32 action values. Images are divided by 255 inside.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebu.errors import UsageError

HIDDEN_UNITS = 512
SMALLEST_SIDE = 36
"""Side of the smallest image that the three convolutions leave a pixel of."""


class NatureTorso(nn.Sequential):
    """Three convolutions of Mnih et al. 2015 (Nature), stacks in, flat features out."""

    def __init__(self, stack: int, frame_shape: tuple[int, ...]) -> None:
        convolutions = nn.Sequential(
            nn.Conv2d(stack, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(Scale(), *convolutions)
        with torch.no_grad():
            self.num_features = int(self(torch.zeros(1, stack, *frame_shape)).shape[1])


class Scale(nn.Module):
    """uint8 pixels to float32 in [0, 1]; channels_last, in which convolutions run fastest."""

    def forward(self, stacks: Tensor) -> Tensor:
        pixels = stacks.to(torch.float32, memory_format=torch.channels_last)
        return pixels.mul_(1 / 255) if stacks.dtype == torch.uint8 else pixels / 255


class VectorTorso(nn.Sequential):
    """One hidden layer over flat observations (B, stack, D)."""

    def __init__(self, stack: int, frame_shape: tuple[int, ...]) -> None:
        self.num_features = 128
        super().__init__(
            nn.Flatten(), nn.Linear(stack * math.prod(frame_shape), self.num_features), nn.ReLU()
        )


class PlainHead(nn.Sequential):
    """One hidden layer, one value per action."""

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__(
            nn.Linear(num_features, HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, num_actions)
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
