"""The residual torso of Espeholt et al. 2018 (IMPALA), for images."""

import itertools
import math

import torch
from torch import Tensor, nn

from agents.architectures import Architecture


class ImpalaTorso(nn.Module):
    """Three stages of a convolution, a maximum over 3 × 3 with stride 2, and two residual blocks.

    Stacks (B, stack, H, W) in, flat features out; images are divided by 255 inside.
    """

    def __init__(self, sizes: Architecture, stack: int, frame_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        for inputs, outputs in itertools.pairwise((stack, *sizes.filters)):
            self.stages += nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                ResidualBlock(outputs),
                ResidualBlock(outputs),
            )
        # Each stage halves the sides, rounded up.
        self.num_features = sizes.filters[-1] * math.prod(-(-side // 8) for side in frame_shape)

    def start_plain(self) -> None:
        """Let residual blocks start as the identity, and biases at 0.

        With every layer drawn at random, action values would start far from 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.second.weight)

    def forward(self, stacks: Tensor) -> Tensor:
        pixels = (stacks.float() / 255).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.stages(pixels).relu()
        return maps.permute(0, 2, 3, 1).flatten(1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2)
        )

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = self.second(torch.relu(self.first(torch.relu(maps))))
        return maps + changed
