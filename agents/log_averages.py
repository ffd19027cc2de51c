"""Averages for the logs, accumulated on the device between two lines."""

from typing import Any

import torch
from torch import Tensor

from ebu.state_checks import check_state


class Averages:
    """Running sums of named values, all added at once; reading them out waits for the device."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        # The last entry is the number of additions.
        self.sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self._one = torch.ones((), device=device)

    def add(self, *values: Tensor) -> None:
        """One value () float32 for each name."""
        self.sums += torch.stack((*values, self._one))

    def take(self) -> dict[str, float]:
        """The averages since the last call; nothing if nothing was added."""
        *sums, count = self.sums.tolist()
        self.sums.zero_()
        return {name: total / count for name, total in zip(self.names, sums, strict=True) if count}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, self.state_dict(), path="averages/")
        self.sums.copy_(state["sums"])
