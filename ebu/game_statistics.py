"""Returns and lengths of the games that a training plays."""

from collections import deque
from typing import Any

import numpy as np

from ebu.interfaces import VectorStep
from ebu.run.ranks import SINGLE, Ranks
from ebu.state_checks import check_floats, check_rows, check_state

RECENT_GAMES = 100
"""Games over which the recent return is averaged (Machado et al. 2018)."""


class GameStatistics:
    """Returns and lengths of the games in N environments, as they are played and as they end."""

    def __init__(self, num_envs: int) -> None:
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self._returns = np.zeros(num_envs)
        self._clipped = np.zeros(num_envs)
        self._finished: list[list[float]] = []
        self.recent: deque[float] = deque(maxlen=RECENT_GAMES)

    def add(self, step: VectorStep) -> None:
        """Count one step of every environment."""
        played = ~step.started
        # Returns are 0 already, but for games that were left without an end.
        self.steps[step.started] = self._returns[step.started] = self._clipped[step.started] = 0
        self.steps += played
        self._returns += step.rewards
        self._clipped += np.clip(step.rewards, -1, 1)
        for j in np.flatnonzero(step.terminated | step.truncated):
            row = [float(self._returns[j]), float(self._clipped[j]), float(self.steps[j])]
            self._finished.append(row)
            self.recent.append(row[0])
            self._returns[j] = self._clipped[j] = 0

    def metrics(self, frames_per_step: int, ranks: Ranks = SINGLE) -> dict[str, float]:
        """Means over the games of all ranks since the last call; nothing if none has ended.

        Each rank has an equal part in the last games.
        """
        finished, self._finished = ranks.join(self._finished), []
        if not finished:
            return {}
        returns, clipped, steps = np.mean(finished, axis=0)
        games = len(finished)
        part = max(1, RECENT_GAMES // ranks.world_size)
        recent = ranks.join(list(self.recent)[-part:])
        return {
            "train/episode_return": float(returns),
            "train/episode_return_clipped": float(clipped),
            "train/episode_length_frames": float(steps) * frames_per_step,
            "train/games": float(games),
            "train/return_last_100_games": float(np.mean(recent)),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "returns": self._returns,
            "clipped": self._clipped,
            "finished": self._finished,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, {**self.state_dict(), "finished": None, "recent": None}, path="games/")
        check_rows(state["finished"], 3, "games/finished")
        check_floats(state["recent"], "games/recent")
        self.steps = state["steps"]
        self._returns, self._clipped = state["returns"], state["clipped"]
        self._finished = state["finished"]
        self.recent = deque(state["recent"], maxlen=RECENT_GAMES)
