"""The actions that environments were given, from which their games can be played again."""

from typing import Any

import numpy as np


class Journal:
    """The actions of N environments since the last seeded reset of each, one byte per action.

    All environments step together, so the journal is one table of shape (steps, N): environment
    j's actions begin at row `starts[j]`. Rows before the earliest start are dropped.
    """

    def __init__(self, num_envs: int) -> None:
        self._table = np.zeros((1024, num_envs), dtype=np.uint8)
        self._rows = 0
        self.starts = np.zeros(num_envs, dtype=np.int64)
        self.seedings = np.zeros(num_envs, dtype=np.int64)  # seeded resets so far

    @property
    def actions(self) -> np.ndarray:
        """(rows, N) uint8; column j is meaningful from row `starts[j]` on."""
        return self._table[: self._rows]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64: steps since each environment's last seeded reset."""
        return self._rows - self.starts

    def append(self, actions: np.ndarray) -> None:
        """Append one step's actions, (N,) in 0..255."""
        if self._rows == len(self._table):
            self._make_room()
        self._table[self._rows] = actions
        self._rows += 1

    def record_seeding(self, mask: np.ndarray) -> None:
        """Record a seeded reset of the environments in `mask`, (N,) bool."""
        self.starts[mask] = self._rows
        self.seedings[mask] += 1

    def _make_room(self) -> None:
        dropped = int(self.starts.min())
        kept = self._table[dropped : self._rows]
        if len(kept) > len(self._table) // 2:
            self._table = np.zeros((2 * len(self._table), self._table.shape[1]), dtype=np.uint8)
        self._table[: len(kept)] = kept
        self._rows = len(kept)
        self.starts -= dropped

    def state_dict(self) -> dict[str, Any]:
        dropped = int(self.starts.min())
        return {
            "actions": self._table[dropped : self._rows].copy(),
            "starts": self.starts - dropped,
            "seedings": self.seedings.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        actions = np.asarray(state["actions"], dtype=np.uint8)
        self._rows = len(actions)
        self._table = np.zeros((max(1024, 2 * self._rows), actions.shape[1]), dtype=np.uint8)
        self._table[: self._rows] = actions
        self.starts = np.array(state["starts"], dtype=np.int64)
        self.seedings = np.array(state["seedings"], dtype=np.int64)
