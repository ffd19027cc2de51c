"""The seam between what acts and learns and the loop that drives it."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.learner import Learner
from ebu.replay import EpisodicReplay


@dataclass(frozen=True)
class AgentConfig:
    """What an agent learns from the replay memory, and how often."""

    gamma: float = 0.99
    """Discount factor."""
    beta: float = 0.5
    """Diffusion factor of EBU: the share of the propagated value in a backward target."""
    batch_size: int = 32
    """Transitions in a minibatch."""
    mix_segments: int = 1
    """Segments side by side in a minibatch of EBU; 1 is the original."""
    updates_per_step: float = 0.25
    """Gradient steps per agent step, whatever the number of environments."""
    learning_starts: int = 5_000
    """Agent steps before the first update."""
    clip_rewards: bool = True
    """Clip rewards to [-1, 1] in targets (evaluation always counts raw rewards)."""


def epsilon_greedy(
    values: Tensor,
    *,
    epsilon: float,
    rng: np.random.Generator,
    forced_random: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose an action for each row, exploring independently in each.

    | argument | shape | meaning |
    | --- | --- | --- |
    | values | (N, A) | action values |
    | forced_random | (N,) bool | rows drawn at random whatever epsilon; none if absent |

    Returns actions (N,) int64 and the probabilities (N,) float32 with which each was chosen.
    """
    num_envs, num_actions = values.shape
    if forced_random is None:
        forced_random = np.zeros(num_envs, dtype=bool)
    greedy = values.argmax(dim=1).cpu().numpy()
    explore = (rng.random(num_envs) < epsilon) | forced_random
    actions = np.where(explore, rng.integers(num_actions, size=num_envs), greedy)
    share = np.where(forced_random, 1.0, epsilon)
    probabilities = share / num_actions + (1 - share) * (actions == greedy)
    return actions, probabilities.astype(np.float32)


class Agent(ABC):
    """Acts epsilon-greedily on its Q-network and learns from a replay memory.

    A subclass says in `learn_once` which transitions come next and what their targets are.
    """

    def __init__(self, config: AgentConfig, learner: Learner, rng: np.random.Generator) -> None:
        self.config = config
        self.learner = learner
        self.rng = rng
        self.target_seconds = 0.0
        """Wall time spent on target passes, for the speed log."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def act(
        self,
        stacks: Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose an action for each of N environments from stacks (N, stack, *frame_shape).

        Returns actions (N,) int64 and their probabilities (N,) float32 under this policy.
        """
        values = self.learner.values(stacks.to(self.learner.device))
        return epsilon_greedy(values, epsilon=epsilon, rng=rng, forced_random=forced_random)

    def learn(self, replay: EpisodicReplay, updates: int) -> None:
        """Take `updates` gradient steps on what the replay memory holds."""
        for _ in range(updates):
            self.learn_once(replay)

    @abstractmethod
    def learn_once(self, replay: EpisodicReplay) -> None:
        """Draw a minibatch and take one gradient step."""

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, for the logs."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def _update(
        self, replay: EpisodicReplay, steps: np.ndarray, streams: np.ndarray, targets: Tensor
    ) -> None:
        states = replay.states(steps, streams)
        loss, values = self.learner.update(states, replay.actions(steps, streams), targets)
        self._record("loss/huber", loss)
        self._record("q/mean", values.mean())
        self._record("q/max", values.max())
        self._record("q/target", targets.mean())
        # Slots are written in lockstep, one agent step in each stream.
        age = float((replay.num_steps - steps).mean()) * replay.num_streams
        self._record("replay/age_agent_steps", torch.tensor(age))

    def _record(self, name: str, value: Tensor) -> None:
        """Add to a running sum on the device; reading it out waits for the next log line."""
        if name in self._sums:
            self._sums[name] += value
        else:
            self._sums[name] = value.to(torch.float64, copy=True)
        self._counts[name] = self._counts.get(name, 0) + 1

    def _clipped(self, rewards: Tensor) -> Tensor:
        return rewards.clamp(-1, 1) if self.config.clip_rewards else rewards

    def _time_targets(self, started: float) -> None:
        self.target_seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "rng": self.rng.bit_generator.state,
            "metrics": {
                "names": list(self._sums),
                "sums": [float(total) for total in self._sums.values()],
                "counts": [self._counts[name] for name in self._sums],
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.rng.bit_generator.state = state["rng"]
        names, device = state["metrics"]["names"], self.learner.device
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device)
            for name, total in zip(names, state["metrics"]["sums"], strict=True)
        }
        self._counts = dict(zip(names, state["metrics"]["counts"], strict=True))
