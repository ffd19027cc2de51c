"""n-step DQN (Sutton 1988; as in Rainbow, Hessel et al. 2018): uniform transitions, n rewards."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from agents.agent import Agent, AgentConfig
from ebu.replay import Batch, EpisodicReplay
from ebu.returns import n_step_targets
from ebu.run.cli import at_most, positive


@dataclass(frozen=True)
class NStepConfig(AgentConfig):
    """DQN with longer targets."""

    n_step: int = 3
    """Rewards in a target, as far as the game goes on that long."""

    def check(self) -> None:
        super().check()
        positive({"--n-step": self.n_step})
        at_most({"--n-step": (self.n_step, 1_000)})


class NStep(Agent):
    """Transitions drawn uniformly; y = r_0 + … + gamma^n max_a Q_target(s_n, a), uncorrected."""

    config_type = NStepConfig
    config: NStepConfig

    def learn_once(self, replay: EpisodicReplay) -> None:
        steps, streams = replay.draw_transitions(self.rng, self.config.batch_size)
        window, joined = replay.neighbours(steps, streams, before=0, after=self.config.n_step - 1)
        self.train_on(
            replay,
            steps,
            streams,
            replay.locate(window.ravel(), streams.repeat(self.config.n_step)),
            joined,
            # Steps of a row count up as far as it is joined, and fall back to the first.
            replay.locate(np.max(window, axis=1), streams),
        )

    def targets(self, batch: Batch, *given: Tensor) -> Tensor:
        window, joined, last = batch.at(given[0]), given[1], batch.at(given[2])
        with self.timed("target_passes"):
            last_next_values = self.learner.target_values(last.next_states)
        with self.timed("targets"):
            return n_step_targets(
                self.clipped(window.rewards).view(joined.shape),
                last_next_values,
                window.terminated.view(joined.shape),
                joined,
                gamma=self.config.gamma,
            )
