"""The seam between a minibatch and what its values are trained towards."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor

from agents.annealing import Annealing
from agents.learner import Learner
from agents.settings import AgentConfig
from ebu.batch import Batch
from ebu.replay import EpisodicReplay
from ebu.sampling import Minibatches
from ebu.stopwatch import Stopwatch

ConfigT_co = TypeVar("ConfigT_co", bound=AgentConfig, covariant=True)


class Target(ABC, Generic[ConfigT_co]):
    """What the values Q(s, a) of a minibatch are trained towards.

    `prepare`, on the host, is called once for several updates, and then the target itself for each
    of them: a function of tensors, part of a CUDA graph on a GPU, that gives float32 targets
    of a batch and of what was prepared for it.
    """

    augments_next_states: ClassVar[bool] = False
    """Whether calls take `next_shifts` and `next_factors` of what `Augmentation` draws."""

    def __init__(self, config: ConfigT_co, learner: Learner, stopwatch: Stopwatch) -> None:
        self._annealing = Annealing(config, learner.config.reset_updates)
        self.config = config
        self.learner = learner
        self.stopwatch = stopwatch

    def anneal(self) -> int:
        """Compute with the settings of the next update; returns how many updates they hold for."""
        self.config, updates = self._annealing.at(self.learner.updates)
        return updates

    def batch(self, replay: EpisodicReplay, located: Tensor) -> Batch:
        """Stored transitions, with the rewards that targets are made of."""
        return replay.batch(located, clip_rewards=self.config.clip_rewards)

    def prepare(
        self, replay: EpisodicReplay, minibatches: Minibatches
    ) -> dict[str, np.ndarray | Tensor]:
        """Arguments of the calls by name, one row for each of n: nothing but the batch by default.

        What is still on the host is uploaded.
        """
        return {}

    @abstractmethod
    def __call__(self, batch: Batch, **prepared: Tensor) -> Tensor:
        """Targets (B,) float32, (K, B) of K learners or (N, B) of N quantiles, without gradient."""

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, for the logs."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
