"""The chain of the EBU paper's motivating example, registered with Gymnasium as `ebu/Chain-v0`.

s1 ⇄ s2 ⇄ s3 ⇄ s4 → s5
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LEFT, RIGHT = 0, 1


class Chain(gymnasium.Env[np.int64, np.int64]):
    """States s1 … sn in a row; every game starts in s1 and ends in sn, the goal.

    The optimal path goes right in every state, n − 1 agent steps.

    | part | meaning |
    | --- | --- |
    | observation | Discrete(n): 0 is s1, n − 1 the goal |
    | actions | 0 left, 1 right; left in s1 stays there |
    | reward | 1 on reaching the goal, else 0 |
    | terminated | on reaching the goal |
    | truncated | after 100 agent steps, by `gymnasium.make` |

    Deterministic: the seed changes nothing. Raises ValueError for fewer than two states,
    `gymnasium.error.InvalidAction` for another action and `gymnasium.error.ResetNeeded` outside a
    game.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012, as in the base class

    def __init__(self, num_states: int = 5, render_mode: str | None = None) -> None:
        if num_states < 2:
            raise ValueError(f"num_states is {num_states}; a chain has a start and a goal")
        self.observation_space = spaces.Discrete(num_states)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self._goal = num_states - 1
        self._state: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = 0
        return np.int64(0), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        if self._state is None or self._state == self._goal:
            raise gymnasium.error.ResetNeeded("reset the chain before the first step of a game")
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"action {action} is neither 0, left, nor 1, right")
        self._state = self._state + 1 if action == RIGHT else max(0, self._state - 1)
        reached = self._state == self._goal
        return np.int64(self._state), float(reached), reached, False, {}

    def render(self) -> str | None:
        """All states in a row, the current one in brackets: ` s1 [s2] s3  s4  s5 `."""
        if self.render_mode != "ansi":
            return None
        names = [f"s{state + 1}" for state in range(self._goal + 1)]
        return "".join(
            f"[{name}]" if state == self._state else f" {name} " for state, name in enumerate(names)
        )


gymnasium.register("ebu/Chain-v0", "envs.chain:Chain", max_episode_steps=100)
