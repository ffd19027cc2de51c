"""Peng's Q(λ) (Peng, Williams 1996; Kozuno et al. 2021) on whole segments."""

from dataclasses import dataclass

from torch import Tensor

from agents.backward import BackwardAgent, BackwardConfig
from ebu.replay import Batch
from ebu.returns import peng_targets
from ebu.run.cli import shares


@dataclass(frozen=True)
class QLambdaConfig(BackwardConfig):
    """How far values travel."""

    trace_lambda: float = 0.7
    """Share of the value that came back from the next step; the rest is the best estimate."""

    def check(self) -> None:
        super().check()
        shares({"--trace-lambda": self.trace_lambda})


class QLambda(BackwardAgent):
    """Whole segments, from the end backward; y = r + gamma ((1 - lambda) max q + lambda y')."""

    config_type = QLambdaConfig
    config: QLambdaConfig

    def sweep(
        self, batch: Batch, next_values: Tensor, length: Tensor, terminated: Tensor
    ) -> Tensor:
        return peng_targets(
            self.clipped(batch.rewards),
            next_values,
            terminated,
            gamma=self.config.gamma,
            trace_lambda=self.config.trace_lambda,
            lengths=length,
        )
