"""The frame stacks an agent sees while it acts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """torch's name for the dtype of an environment's frames."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


class FrameStack:
    """The newest `stack` frames of N environments, oldest first.

    Before a game's first frame a stack holds zeros, in acting as in the replay memory.
    """

    def __init__(
        self,
        num_envs: int,
        frame_shape: tuple[int, ...],
        frame_dtype: torch.dtype,
        stack: int,
        device: torch.device,
    ) -> None:
        self.stacks: Tensor = torch.zeros(
            (num_envs, stack, *frame_shape), dtype=frame_dtype, device=device
        )

    def push(self, frames: np.ndarray, started: np.ndarray) -> Tensor:
        """Append the newest frames and return the stacks.

        | argument | shape | meaning |
        | --- | --- | --- |
        | frames | (N, *frame_shape) | newest frame of each environment |
        | started | (N,) bool | the frame is the first of a new game |

        Returns (N, stack, *frame_shape): a view, overwritten by the next push.
        """
        self.stacks[:, :-1] = self.stacks[:, 1:].clone()
        if started.any():
            self.stacks[torch.from_numpy(started).to(self.stacks.device)] = 0
        self.stacks[:, -1] = torch.from_numpy(frames).to(self.stacks.device)
        return self.stacks
