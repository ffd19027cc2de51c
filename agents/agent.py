"""The seam between what acts and learns and the loop that drives it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor
from torch.profiler import record_function

from agents.averages import Averages
from agents.graphs import Captured
from agents.learner import Learner, LearnerConfig
from ebu.interfaces import VectorStep
from ebu.replay import Batch, EpisodicReplay
from ebu.run.cli import at_most, not_negative, positive, shares
from ebu.staging import Staging

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class AgentConfig:
    """What an agent learns from the replay memory, and how often."""

    gamma: float = 0.99
    """Discount factor."""
    batch_size: int = 32
    """Transitions in a minibatch."""
    updates_per_step: float = 1.0
    """Gradient steps per agent step, whatever the number of environments."""
    learning_starts: int = 5_000
    """Agent steps before the first update."""
    clip_rewards: bool = True
    """Clip rewards to [-1, 1] in targets (evaluation always counts raw rewards)."""
    cuda_graphs: bool = True
    """On a GPU, launch an update as one graph of all its operations."""

    def check(self) -> None:
        """Raise `UsageError`, with the flag to change, for settings no agent can learn with."""
        positive({"--batch-size": self.batch_size, "--updates-per-step": self.updates_per_step})
        at_most(
            {
                "--batch-size": (self.batch_size, 65_536),
                "--updates-per-step": (self.updates_per_step, 1_000),
            }
        )
        not_negative({"--learning-starts": self.learning_starts})
        shares({"--gamma": self.gamma})


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

    A subclass says in `learn_once` which transitions come next, and in `targets` towards what
    their values are moved.
    """

    config_type: ClassVar[type[AgentConfig]] = AgentConfig
    """The settings of this kind of agent: its flags, and their defaults."""
    needs_segments: ClassVar[bool] = False
    """Whether it learns from whole segments; other agents learn from single transitions."""

    def __init__(self, config: AgentConfig, learner: Learner, rng: np.random.Generator) -> None:
        self.config = config
        self.learner = learner
        self.rng = rng
        self.seconds: dict[str, float] = {}
        """Wall time spent on parts of learning, for the speed log; on a GPU that of launching."""
        self.last_values: Tensor
        """Action values (N, A) that `act` last chose from; its next call may overwrite them."""
        self._staging = Staging(learner.device)
        self._averages = Averages(("loss/huber", "q/mean", "q/max", "q/target"), learner.device)
        self._ages = 0.0
        self._updates_since_line = 0
        self._values = self.captured(lambda states: self.learner.values(states))
        self._playing_values = self.captured(lambda states: self.learner.playing_values(states))
        self._gradient_step = self.captured(self._learn_from)

    @classmethod
    def build_learner(cls, config: AgentConfig, learner: LearnerConfig, **sizes: Any) -> Learner:
        """What an agent with these settings trains; `sizes` are all other arguments of it."""
        return Learner(learner, **sizes)

    @staticmethod
    def policy_weights(state: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of the network that plays, by their names in it, from a `state_dict`."""
        learner = state["learner"]
        weights: dict[str, Tensor] = learner.get("average", learner["online"])
        return weights

    def captured(self, function: Callable[..., ResultT]) -> Captured[ResultT]:
        """The function as one CUDA graph on a GPU; see `Captured` for what it may do."""
        return Captured(
            function,
            self._staging,
            changes=lambda: [*self.learner.tensors(), self._averages.sums],
            enabled=self.config.cuda_graphs,
        )

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
        self.last_values = self.acting_values(stacks.to(self.learner.device))
        return epsilon_greedy(
            self.last_values, epsilon=epsilon, rng=rng, forced_random=forced_random
        )

    def acting_values(self, stacks: Tensor) -> Tensor:
        """Action values (N, A) float32 to act on in the games that are learned from."""
        return self._values(stacks)

    def play(
        self,
        stacks: Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `act`, with the weights of `policy_weights`, in games that it does not learn from."""
        values = self._playing_values(stacks.to(self.learner.device))
        return epsilon_greedy(values, epsilon=epsilon, rng=rng, forced_random=forced_random)

    def observe(self, step: VectorStep) -> None:  # noqa: B027
        """Take note of what the games showed; called after their reset and after every step."""

    def learn(self, replay: EpisodicReplay, updates: int) -> None:
        """Take `updates` gradient steps on what the replay memory holds."""
        for _ in range(updates):
            self.learn_once(replay)

    @abstractmethod
    def learn_once(self, replay: EpisodicReplay) -> None:
        """Draw a minibatch and `train_on` it."""

    @abstractmethod
    def targets(self, batch: Batch, *given: Tensor) -> Tensor:
        """Targets (B,) float32 of a minibatch; `given` is what `train_on` was given with it.

        Part of what is captured on a GPU: a function of tensors, on the device.
        """

    def loss_weights(self, *given: Tensor) -> Tensor | None:
        """Weights (B,) float32 of a minibatch's losses, captured like `targets`; None: all 1."""
        return None

    def train_on(
        self,
        replay: EpisodicReplay,
        steps: np.ndarray,
        streams: np.ndarray,
        *given: np.ndarray | Tensor,
    ) -> Tensor:
        """Take one gradient step on stored transitions, (B,) int64 each.

        `given` is passed on to `targets`, arrays as tensors on the device. Returns target - Q(s, a)
        before the step, (B,) float32, on the device.
        """
        errors = self._gradient_step(replay, replay.locate(steps, streams), *given)
        self.learner.count_update()
        # Slots are written in lockstep, one agent step in each stream.
        self._ages += (replay.num_steps - float(steps.mean())) * replay.num_streams
        self._updates_since_line += 1
        return errors

    def _learn_from(self, replay: EpisodicReplay, located: Tensor, *given: Tensor) -> Tensor:
        batch = replay.batch(located)
        targets = self.targets(batch, *given)
        with record_function("update"):
            loss, values = self.learner.update(
                batch.states, batch.actions, targets, self.loss_weights(*given)
            )
            # Means also over learners, where there are several.
            self._averages.add(loss.mean(), values.mean(), values.max(), targets.mean())
        return targets - values

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, for the logs."""
        metrics = self._averages.take()
        if self._updates_since_line:
            metrics["replay/age_agent_steps"] = self._ages / self._updates_since_line
        self._ages, self._updates_since_line = 0.0, 0
        return metrics

    def clipped(self, rewards: Tensor) -> Tensor:
        """Rewards as they enter targets."""
        return rewards.clamp(-1, 1) if self.config.clip_rewards else rewards

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time inside towards a part of learning, and name it in a profile."""
        started = time.perf_counter()
        with record_function(part):
            yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "rng": self.rng.bit_generator.state,
            "averages": self._averages.state_dict(),
            "ages": self._ages,
            "updates_since_line": self._updates_since_line,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.rng.bit_generator.state = state["rng"]
        self._averages.load_state_dict(state["averages"])
        self._ages = state["ages"]
        self._updates_since_line = state["updates_since_line"]
