"""Episodic Backward Update with a constant diffusion factor (Lee et al. 2019, Algorithm 2)."""

import torch
from torch import Tensor

from agents.learner import Learner
from agents.segment_target import SegmentTarget
from agents.settings import AdaptiveEbuConfig, EbuConfig
from ebu.batch import Batch
from ebu.double_backward import double_backward_targets
from ebu.quantiles import quantile_backward_targets
from ebu.stopwatch import Stopwatch
from ebu.targets import backward_targets, propagated_share


class EbuTarget(SegmentTarget[EbuConfig]):
    """y = r + γ max(m, β y' + (1 - β) q): β is where the propagated value enters.

    m is the largest value of the next state's other actions, q that of the action taken there.
    With `double` the online network decides what is the largest, and the target network values it.
    """

    diagnostics = (*SegmentTarget.diagnostics, "q/propagated_share")

    def __init__(self, config: EbuConfig, learner: Learner, stopwatch: Stopwatch) -> None:
        super().__init__(config, learner, stopwatch)
        self._betas: Tensor | None = None
        if isinstance(config, AdaptiveEbuConfig) and config.learners > 1:
            self._betas = torch.tensor(config.betas, dtype=torch.float64, device=learner.device)

    @property
    def beta(self) -> float | Tensor:
        """β, or those of several learners (K,) float64."""
        return self.config.beta if self._betas is None else self._betas

    def next_values(self, batch: Batch) -> Tensor:
        """The next states' values by the target network (T, A), or its quantiles (N, T, A).

        With `double` one more (T, A) comes first: the online network's values.
        """
        states = batch.next_states
        if self.learner.config.quantiles:
            values = self.learner.target_quantiles(states)
        else:
            values = self.learner.target_values(states)
        if not self.config.double:
            return values
        online = self.learner.values(states)[None]
        return torch.cat([online, values.view(-1, *online.shape[1:])])

    def sweep(
        self, batch: Batch, next_values: Tensor, lengths: Tensor, terminated: Tensor
    ) -> Tensor:
        gamma = self.config.gamma
        if self.learner.config.quantiles:
            online_values = next_values[0] if self.config.double else None
            return quantile_backward_targets(
                batch.rewards,
                next_values[1:] if self.config.double else next_values,
                batch.actions,
                terminated,
                gamma=gamma,
                beta=self.config.beta,
                lengths=lengths,
                online_values=online_values,
            )
        if self.config.double:
            online, values = next_values
            return double_backward_targets(
                batch.rewards,
                online,
                values,
                batch.actions,
                terminated,
                gamma=gamma,
                beta=self.beta,
                lengths=lengths,
            )
        return backward_targets(
            batch.rewards,
            next_values,
            batch.actions,
            terminated,
            gamma=gamma,
            beta=self.beta,
            lengths=lengths,
        )

    def diagnose(self, batch: Batch, next_values: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        values = next_values
        if self.learner.config.quantiles:
            values, targets = (
                next_values[1:] if self.config.double else next_values,
                targets.mean(0),
            )
            values = values.mean(0)
        elif self.config.double:
            values = next_values[-1]
        share = propagated_share(targets, values, batch.actions, beta=self.beta)
        return (*super().diagnose(batch, values, targets), share.mean())
