"""Retrace(λ) (Munos, Stepleton, Harutyunyan, Bellemare 2016) on whole segments."""

from torch import Tensor

from agents.segment_target import SegmentTarget
from agents.settings import RetraceConfig
from ebu.batch import Batch
from ebu.returns import retrace_targets


class RetraceTarget(SegmentTarget[RetraceConfig]):
    """Values propagated backward; traces cut where the learned policy would act differently."""

    def sweep(
        self, batch: Batch, next_values: Tensor, lengths: Tensor, terminated: Tensor
    ) -> Tensor:
        return retrace_targets(
            batch.rewards,
            next_values,
            batch.actions,
            batch.probabilities,
            terminated,
            gamma=self.config.gamma,
            trace_lambda=self.config.trace_lambda,
            target_epsilon=self.config.target_epsilon,
            lengths=lengths,
        )
