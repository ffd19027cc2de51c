"""One-step and n-step targets of single transitions, plain and double."""

import numpy as np
from torch import Tensor

from agents.augmentation import Augmentation
from agents.settings import TransitionConfig
from agents.target import Target
from ebu.batch import Batch
from ebu.replay import EpisodicReplay
from ebu.returns import chosen_values, n_step_targets
from ebu.sampling import Minibatches
from ebu.targets import one_step_targets


class NStepTarget(Target[TransitionConfig]):
    """y = r_0 + … + γ^(n-1) r_(n-1) + γ^n max_a Q̂(s_n, a), uncorrected.

    n = 1 is DQN (Mnih et al. 2015); with `double` the online network chooses a (van Hasselt, Guez,
    Silver 2016); n > 1 as in Rainbow (Hessel et al. 2018). Images of next states are changed as
    those that are trained on, by draws of their own (Yarats et al. 2021).
    """

    augments_next_states = True

    def prepare(
        self, replay: EpisodicReplay, minibatches: Minibatches
    ) -> dict[str, np.ndarray | Tensor]:
        n = self.config.n_step
        if n == 1:
            return {}
        updates = len(minibatches.steps)
        steps, streams = minibatches.steps.ravel(), minibatches.streams.ravel()
        window, joined = replay.transitions.neighbours(steps, streams, before=0, after=n - 1)
        prepared = {
            "window": replay.transitions.locate(window.ravel(), streams.repeat(n)),
            "joined": joined,
            # Steps of a row count up as far as it is joined, and fall back to the first.
            "last": replay.transitions.locate(np.max(window, axis=1), streams),
        }
        return {name: each.reshape(updates, -1, each.shape[-1]) for name, each in prepared.items()}

    def __call__(
        self,
        batch: Batch,
        next_shifts: Tensor | None = None,
        next_factors: Tensor | None = None,
        **prepared: Tensor,
    ) -> Tensor:
        last = batch.at(prepared["last"]) if prepared else batch
        with self.stopwatch.time("target_passes"):
            values = self._best_values(
                Augmentation.apply(last.next_states, next_shifts, next_factors)
            )
        if not prepared:
            with self.stopwatch.time("targets"):
                return one_step_targets(
                    batch.rewards, values, batch.terminated, gamma=self.config.gamma
                )
        window, joined = batch.at(prepared["window"]), prepared["joined"]
        with self.stopwatch.time("targets"):
            return n_step_targets(
                window.rewards.view(joined.shape),
                values,
                window.terminated.view(joined.shape),
                joined,
                gamma=self.config.gamma,
            )

    def _best_values(self, states: Tensor) -> Tensor:
        """Target values whose largest (…, B) are bootstrapped from: (B, A), or of the action that
        was chosen (B, 1), or its quantiles (N, B, 1)."""
        if self.learner.config.quantiles:
            quantiles = self.learner.target_quantiles(states)
            choosing = self.learner.values(states) if self.config.double else quantiles.mean(0)
            chosen = choosing.argmax(-1, keepdim=True)
            return quantiles.gather(-1, chosen.expand(len(quantiles), -1, -1))
        values = self.learner.target_values(states)
        return chosen_values(self.learner.values(states), values) if self.config.double else values
