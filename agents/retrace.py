"""Retrace(λ) (Munos, Stepleton, Harutyunyan, Bellemare 2016) on whole segments."""

from dataclasses import dataclass

from torch import Tensor

from agents.backward import BackwardAgent, BackwardConfig
from ebu.replay import Batch
from ebu.returns import retrace_targets
from ebu.run.cli import shares


@dataclass(frozen=True)
class RetraceConfig(BackwardConfig):
    """How far values travel, and of which policy."""

    trace_lambda: float = 1.0
    """How much of a trace is kept in a step that both policies choose alike."""
    target_epsilon: float = 0.01
    """The policy whose values are learned is epsilon-greedy with this epsilon."""

    def check(self) -> None:
        super().check()
        shares({"--trace-lambda": self.trace_lambda, "--target-epsilon": self.target_epsilon})


class Retrace(BackwardAgent):
    """Whole segments, from the end backward; traces cut where the policy would not have gone."""

    config_type = RetraceConfig
    config: RetraceConfig

    def sweep(
        self, batch: Batch, next_values: Tensor, length: Tensor, terminated: Tensor
    ) -> Tensor:
        return retrace_targets(
            self.clipped(batch.rewards),
            next_values,
            batch.actions,
            batch.probabilities,
            terminated,
            gamma=self.config.gamma,
            trace_lambda=self.config.trace_lambda,
            target_epsilon=self.config.target_epsilon,
            lengths=length,
        )
