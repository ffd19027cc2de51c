"""Random shifts and intensities of the images that are trained on.

Yarats, Kostrikov, Fergus, *Image Augmentation Is All You Need*, ICLR 2021: pad by the last pixels,
crop at random, multiply. What is random is drawn on the host, from a generator that is saved; the
images change on the device.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.settings import AgentConfig

LARGEST_NOISE = 2.0
"""Where the noise of intensities is cut."""


class Augmentation:
    """Changes the states of minibatches as the settings say, or not at all."""

    def __init__(self, config: AgentConfig, rng: np.random.Generator) -> None:
        self._shift = config.shift_pixels
        self._intensity = config.intensity
        self._rng = rng

    def draw(self, updates: int, size: int) -> dict[str, np.ndarray]:
        """Draw the arguments of `apply` for several minibatches, a row for each."""
        drawn: dict[str, np.ndarray] = {}
        if self._shift:
            shape = (updates, size, 2)
            drawn["shifts"] = self._rng.integers(-self._shift, self._shift, shape, endpoint=True)
        if self._intensity:
            noise = self._rng.standard_normal((updates, size)).clip(-LARGEST_NOISE, LARGEST_NOISE)
            drawn["factors"] = (1.0 + self._intensity * noise).astype(np.float32)
        return drawn

    @staticmethod
    def apply(
        states: Tensor, shifts: Tensor | None = None, factors: Tensor | None = None
    ) -> Tensor:
        """States as they are trained on: uint8, or float32 with factors.

        | argument | shape, dtype | meaning |
        | --- | --- | --- |
        | states | (B, stack, H, W) uint8 | |
        | shifts | (B, 2) int64 | pixel (i, j) shows what was at (i + shift, j + shift) |
        | factors | (B,) float32 | of the pixels of each state |
        """
        if shifts is not None:
            count, stack, height, width = states.shape
            rows, columns = (
                (torch.arange(side, device=states.device) + shift[:, None]).clamp(0, side - 1)
                for side, shift in zip((height, width), shifts.unbind(1), strict=True)
            )
            places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)
            flat = states.flatten(2).gather(2, places.expand(-1, stack, -1))
            states = flat.view(count, stack, height, width)
        if factors is not None:
            states = states * factors[:, None, None, None]
        return states

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self._rng.bit_generator.state} if self._shift or self._intensity else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._rng.bit_generator.state = state["rng"]
