"""Double DQN (van Hasselt, Guez, Silver 2016): who chooses the next action does not value it."""

from torch import Tensor

from agents.dqn import Dqn
from ebu.replay import Batch
from ebu.returns import double_targets


class DoubleDqn(Dqn):
    """Transitions drawn uniformly; y = r + gamma Q_target(s', argmax_a Q_online(s', a))."""

    def targets(self, batch: Batch, *given: Tensor) -> Tensor:
        with self.timed("target_passes"):
            online = self.learner.values(batch.next_states)
            target = self.learner.target_values(batch.next_states)
        with self.timed("targets"):
            return double_targets(
                self.clipped(batch.rewards),
                online,
                target,
                batch.terminated,
                gamma=self.config.gamma,
            )
