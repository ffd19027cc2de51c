"""Episodic Backward Update with a constant diffusion factor (Lee et al. 2019, Algorithm 2)."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from agents.backward import BackwardAgent, BackwardConfig
from agents.learner import Learner
from ebu.replay import Batch
from ebu.run.cli import shares
from ebu.targets import backward_targets, propagated_share


@dataclass(frozen=True)
class EbuConfig(BackwardConfig):
    """EBU with one diffusion factor."""

    beta: float = 0.5
    """Diffusion factor: the share of the propagated value in a backward target."""

    def check(self) -> None:
        super().check()
        shares({"--beta": self.beta})


class Ebu(BackwardAgent):
    """Whole segments, from the end backward; y = r + gamma max(m, beta y' + (1 - beta) q)."""

    config_type = EbuConfig
    config: EbuConfig
    diagnostics = (*BackwardAgent.diagnostics, "q/propagated_share")

    def __init__(self, config: EbuConfig, learner: Learner, rng: np.random.Generator) -> None:
        super().__init__(config, learner, rng)
        self.beta: float | Tensor = config.beta

    def sweep(
        self, batch: Batch, next_values: Tensor, length: Tensor, terminated: Tensor
    ) -> Tensor:
        return backward_targets(
            self.clipped(batch.rewards),
            next_values,
            batch.actions,
            terminated,
            gamma=self.config.gamma,
            beta=self.beta,
            lengths=length,
        )

    def diagnose(self, batch: Batch, next_values: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        share = propagated_share(targets, next_values, batch.actions, beta=self.beta)
        return (*super().diagnose(batch, next_values, targets), share.mean())
