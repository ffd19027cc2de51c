"""One-step DQN (Mnih et al. 2015): uniform transitions, one-step targets."""

from torch import Tensor

from agents.agent import Agent
from ebu.replay import Batch, EpisodicReplay
from ebu.targets import one_step_targets


class Dqn(Agent):
    """Transitions drawn uniformly; y = r + gamma max_a Q_target(s', a)."""

    def learn_once(self, replay: EpisodicReplay) -> None:
        self.train_on(replay, *replay.draw_transitions(self.rng, self.config.batch_size))

    def targets(self, batch: Batch, *given: Tensor) -> Tensor:
        with self.timed("target_passes"):
            next_values = self.learner.target_values(batch.next_states)
        with self.timed("targets"):
            return one_step_targets(
                self.clipped(batch.rewards), next_values, batch.terminated, gamma=self.config.gamma
            )
