"""One-step DQN (Mnih et al. 2015): uniform transitions, one-step targets."""

import time

from agents.agent import Agent
from ebu.replay import EpisodicReplay
from ebu.targets import one_step_targets


class Dqn(Agent):
    """Transitions drawn uniformly; y = r + gamma max_a Q_target(s', a)."""

    def learn_once(self, replay: EpisodicReplay) -> None:
        steps, streams = replay.draw_transitions(self.rng, self.config.batch_size)
        started = time.perf_counter()
        targets = one_step_targets(
            self._clipped(replay.rewards(steps, streams)),
            self.learner.target_values(replay.next_states(steps, streams)),
            replay.terminated(steps, streams),
            gamma=self.config.gamma,
        )
        self._time_targets(started)
        self._update(replay, steps, streams, targets)
