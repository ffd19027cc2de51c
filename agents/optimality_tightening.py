"""Optimality tightening (He, Liu, Schwing, Peng 2017): bounds from the steps around."""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.agent import Agent, AgentConfig
from ebu.replay import Batch, EpisodicReplay
from ebu.returns import optimality_bounds, tightened_targets
from ebu.run.cli import at_most, not_negative, positive


@dataclass(frozen=True)
class OptimalityTighteningConfig(AgentConfig):
    """DQN with bounds on its values."""

    bound_steps: int = 4
    """Steps before and behind a transition whose returns bound its value."""
    bound_penalty: float = 4.0
    """Weight of a broken bound beside the one-step target."""

    def check(self) -> None:
        super().check()
        # Upper bounds are returns divided by powers of gamma.
        positive({"--bound-steps": self.bound_steps, "--gamma": self.gamma})
        at_most({"--bound-steps": (self.bound_steps, 1_000)})
        not_negative({"--bound-penalty": self.bound_penalty})


class OptimalityTightening(Agent):
    """Transitions drawn uniformly; one-step targets, drawn towards the bounds that Q(s, a) breaks.

    An update takes 2 K + 1 target passes and one more online pass of its minibatch.
    """

    config_type = OptimalityTighteningConfig
    config: OptimalityTighteningConfig

    def learn_once(self, replay: EpisodicReplay) -> None:
        steps, streams = replay.draw_transitions(self.rng, self.config.batch_size)
        reach = self.config.bound_steps
        window, joined = replay.neighbours(steps, streams, before=reach, after=reach)
        located = replay.locate(window.ravel(), streams.repeat(window.shape[1]))
        self.train_on(replay, steps, streams, located.reshape(*window.shape, -1), joined)

    def targets(self, batch: Batch, *given: Tensor) -> Tensor:
        located, joined = given
        (count, width), reach = joined.shape, self.config.bound_steps
        window = batch.at(located.flatten(0, 1))
        before = batch.at(located[:, :reach].flatten(0, 1))
        behind = batch.at(located[:, reach:].flatten(0, 1))
        with self.timed("target_passes"):
            values = self.learner.target_values(torch.cat([before.states, behind.next_states]))
            online = self.learner.values(batch.states)
        with self.timed("targets"):
            taken = values[: count * reach].gather(1, before.actions[:, None])
            one_step, lower, upper = optimality_bounds(
                self.clipped(window.rewards).view(count, width),
                window.terminated.view(count, width),
                joined,
                taken.view(count, reach),
                values[count * reach :].amax(1).view(count, reach + 1),
                gamma=self.config.gamma,
            )
            own = online.gather(1, batch.actions[:, None]).squeeze(1)
            return tightened_targets(own, one_step, lower, upper, penalty=self.config.bound_penalty)
