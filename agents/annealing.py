"""Settings of a target that change with the updates: n steps, discount and diffusion factor."""

import sys
from dataclasses import replace
from typing import Any, Generic, TypeVar

from agents.settings import AgentConfig

ConfigT = TypeVar("ConfigT", bound=AgentConfig)

LEVELS = 16
"""Values that a setting takes before its last: each is a CUDA graph of its own."""


class Annealing(Generic[ConfigT]):
    """The settings at each update, from `gamma_start`, `n_step_start` and `beta_start` on.

    n and the horizon 1 / (1 - γ) change by a constant factor from level to level (Schwarzer et al.
    2023, BBF), β by a constant difference. After `anneal_updates` updates they are what the
    settings say; a reset of the network begins again.

    | argument | meaning |
    | --- | --- |
    | reset_updates | updates between two resets; 0 for none |
    """

    def __init__(self, config: ConfigT, reset_updates: int) -> None:
        self._updates = config.anneal_updates
        self._reset_updates = reset_updates
        self._levels = [config]
        if config.annealed:
            # Kept, since a graph knows them by their identity.
            self._levels = [_level(config, k / LEVELS) for k in range(LEVELS)] + [config]

    def at(self, updates: int) -> tuple[ConfigT, int]:
        """The settings of the next update, once `updates` are done, and how many they hold for."""
        last = len(self._levels) - 1
        period = self._reset_updates or sys.maxsize
        done = updates % period
        level = min(last, done * last // self._updates)
        # The first update of the next level: the smallest u with u * last // updates > level.
        following = -(-(level + 1) * self._updates // last) if level < last else period
        return self._levels[level], min(following, period) - done


def _level(config: ConfigT, share: float) -> ConfigT:
    """The settings after a share of the way."""

    def geometric(start: float, end: float) -> float:
        return float(start ** (1 - share) * end**share)

    changes: dict[str, Any] = {}
    for name in config.annealed:
        start, end = getattr(config, f"{name}_start"), getattr(config, name)
        if name == "gamma":
            changes[name] = 1 - geometric(1 - start, 1 - end)
        elif name == "n_step":
            changes[name] = round(geometric(start, end))
        else:
            changes[name] = start + share * (end - start)
    return replace(config, **changes)
