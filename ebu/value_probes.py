"""What the network predicted in play, against what was really earned from there."""

from typing import Any

import numpy as np

from ebu.interfaces import VectorStep
from ebu.run.ranks import SINGLE, Ranks
from ebu.state_checks import check_rows, check_state

NEGLIGIBLE = 0.01
"""Discount below which the rest of a return is left out."""


class ValueProbes:
    """Compares predicted action values with discounted returns in N environments.

    Each environment has one probe at a time: the value of an action when it was taken, and the
    discounted rewards from there until the segment terminates or the discount is negligible. The
    next probe begins where the last one ended, so probes lie all over a game. A probe in a segment
    that is truncated is dropped: its return is not known.

    | argument | meaning |
    | --- | --- |
    | gamma | discount factor |
    | clip_rewards | clip rewards to [-1, 1], as the targets do |
    """

    def __init__(self, num_envs: int, *, gamma: float, clip_rewards: bool) -> None:
        self._gamma = gamma
        self._clip_rewards = clip_rewards
        self._open = np.zeros(num_envs, dtype=bool)
        self._predicted = np.zeros(num_envs)
        self._earned = np.zeros(num_envs)
        self._discounts = np.zeros(num_envs)
        self._finished: list[list[float]] = []

    def free(self) -> np.ndarray:
        """Environments (N,) bool in which the next action begins a probe."""
        return ~self._open

    def begin(self, free: np.ndarray, values: np.ndarray) -> None:
        """Begin probes in the environments of `free`, (N,) bool; values (their number,) float32."""
        self._open[free] = True
        self._predicted[free] = values
        self._earned[free] = 0.0
        self._discounts[free] = 1.0

    def add(self, step: VectorStep, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Count one step of every environment; where segments end, (N,) bool each."""
        rewards = np.clip(step.rewards, -1, 1) if self._clip_rewards else step.rewards
        self._earned += self._discounts * rewards
        self._discounts *= self._gamma
        complete = self._open & ~step.started
        complete &= terminated | (self._discounts < NEGLIGIBLE)
        if complete.any():
            rows = np.stack([self._predicted[complete], self._earned[complete]], axis=1)
            self._finished += rows.tolist()
        self._open &= ~(complete | truncated | step.started)

    def metrics(self, ranks: Ranks = SINGLE) -> dict[str, float]:
        """Means over the probes of all ranks since the last call; nothing if none has ended."""
        finished, self._finished = ranks.join(self._finished), []
        if not finished:
            return {}
        predicted, earned = np.mean(finished, axis=0)
        return {"q/predicted": float(predicted), "q/earned": float(earned)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "open": self._open,
            "predicted": self._predicted,
            "earned": self._earned,
            "discounts": self._discounts,
            "finished": self._finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, {**self.state_dict(), "finished": None}, path="probes/")
        check_rows(state["finished"], 2, "probes/finished")
        self._open, self._finished = state["open"], state["finished"]
        self._predicted, self._earned = state["predicted"], state["earned"]
        self._discounts = state["discounts"]
