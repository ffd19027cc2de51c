"""Peng's Q(λ) (Peng, Williams 1996; Kozuno et al. 2021) on whole segments."""

from torch import Tensor

from agents.segment_target import SegmentTarget
from agents.settings import QLambdaConfig
from ebu.batch import Batch
from ebu.returns import peng_targets


class QLambdaTarget(SegmentTarget[QLambdaConfig]):
    """y = r + γ ((1 - λ) max q + λ y'), propagated backward."""

    def sweep(
        self, batch: Batch, next_values: Tensor, lengths: Tensor, terminated: Tensor
    ) -> Tensor:
        return peng_targets(
            batch.rewards,
            next_values,
            terminated,
            gamma=self.config.gamma,
            trace_lambda=self.config.trace_lambda,
            lengths=lengths,
        )
