"""The first update whose loss is not finite, noted on the device without waiting for it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = {"cpu"}
"""Kinds of device on which a loss is read at once, which takes less there than to note it."""


class FiniteUpdates:
    """Counts the updates before the first whose loss is NaN or infinite."""

    def __init__(self, device: torch.device) -> None:
        # 0, and NaN from the first such loss on: zero times any finite number adds nothing.
        self._poison = torch.zeros((), device=device)
        self._finite = torch.zeros((), dtype=torch.int64, device=device)
        self._before = 0
        self._failed = False

    def tensors(self) -> list[Tensor]:
        """All tensors that `add` changes."""
        return [self._poison, self._finite]

    def add(self, losses: Sequence[Tensor]) -> None:
        """Count updates with these losses, each () or (K,) float32, in the order they were made."""
        sums = [loss.sum() if loss.dim() else loss for loss in losses]
        if self._poison.device.type not in AT_ONCE:
            poison = (torch.stack((self._poison, *sums)) * 0).cumsum(0)
            self._finite.add_((poison == poison)[1:].sum())
            self._poison.copy_(poison[-1])
            return
        for loss in sums:
            self._failed = self._failed or not math.isfinite(loss.item())
            self._before += not self._failed

    def start_at(self, updates: int) -> None:
        """Count on from an agent that has made this many updates, all of them finite."""
        self._poison.zero_()
        self._finite.zero_()
        self._before, self._failed = updates, False

    def first_failure(self) -> int | None:
        """The number, from 1, of the first update that was not finite; None if all were."""
        if not self._failed and not bool(self._poison.isnan()):
            return None
        return self._before + int(self._finite) + 1


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no number in any of these tensors is NaN or infinite."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
