"""Optimality tightening (He, Liu, Schwing, Peng 2017): bounds from the steps around."""

import numpy as np
import torch
from torch import Tensor

from agents.settings import OptimalityTighteningConfig
from agents.target import Target
from ebu.batch import Batch
from ebu.replay import EpisodicReplay
from ebu.returns import optimality_bounds, tightened_targets
from ebu.sampling import Minibatches


class OptimalityTighteningTarget(Target[OptimalityTighteningConfig]):
    """One-step targets, moved towards the bounds that Q(s, a) violates.

    An update takes 2 K + 1 target passes and one more online pass of its minibatch.
    """

    def prepare(
        self, replay: EpisodicReplay, minibatches: Minibatches
    ) -> dict[str, np.ndarray | Tensor]:
        steps, streams = minibatches.steps.ravel(), minibatches.streams.ravel()
        reach = self.config.bound_steps
        window, joined = replay.transitions.neighbours(steps, streams, before=reach, after=reach)
        located = replay.transitions.locate(window.ravel(), streams.repeat(window.shape[1]))
        shape = (*minibatches.steps.shape, window.shape[1])
        return {"window": located.reshape(*shape, -1), "joined": joined.reshape(shape)}

    def __call__(self, batch: Batch, **prepared: Tensor) -> Tensor:
        located, joined = prepared["window"], prepared["joined"]
        (count, width), reach = joined.shape, self.config.bound_steps
        window = batch.at(located.flatten(0, 1))
        before = batch.at(located[:, :reach].flatten(0, 1))
        after = batch.at(located[:, reach:].flatten(0, 1))
        with self.stopwatch.time("target_passes"):
            values = self.learner.target_values(torch.cat([before.states, after.next_states]))
            online = self.learner.values(batch.states)
        with self.stopwatch.time("targets"):
            taken = values[: count * reach].gather(1, before.actions[:, None])
            one_step, lower, upper = optimality_bounds(
                window.rewards.view(count, width),
                window.terminated.view(count, width),
                joined,
                taken.view(count, reach),
                values[count * reach :].amax(1).view(count, reach + 1),
                gamma=self.config.gamma,
            )
            own = online.gather(1, batch.actions[:, None]).squeeze(1)
            return tightened_targets(own, one_step, lower, upper, penalty=self.config.bound_penalty)
