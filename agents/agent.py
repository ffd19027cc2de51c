"""An agent: acts epsilon-greedily on its Q-network and learns from a replay memory."""

from typing import Any, Unpack

import numpy as np
from torch import Tensor
from torch.profiler import record_function

from agents.augmentation import Augmentation
from agents.finiteness import FiniteUpdates, all_finite
from agents.graphs import capture
from agents.learner import Learner
from agents.log_averages import Averages
from agents.noisy import without_noise
from agents.settings import AgentConfig
from agents.target import Target
from ebu.interfaces import Exploration, VectorStep
from ebu.replay import EpisodicReplay
from ebu.sampling import Sampler
from ebu.staging import Staging
from ebu.state_checks import check_state
from ebu.stopwatch import Stopwatch

MEASURED_UPDATES = 16
"""Loss and action values are logged for one update in 16; a CUDA graph holds at most 16."""


def epsilon_greedy(
    values: Tensor,
    *,
    epsilon: float,
    rng: np.random.Generator,
    forced_random: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose an action for each row, exploring independently in each.

    | argument | shape | meaning |
    | --- | --- | --- |
    | values | (N, A) | action values |
    | forced_random | (N,) bool | forced random regardless of epsilon; default: none |

    Returns actions (N,) int64 and the probabilities (N,) float32 with which each was chosen.
    """
    num_envs, num_actions = values.shape
    if forced_random is None:
        forced_random = np.zeros(num_envs, dtype=bool)
    greedy = values.argmax(dim=1).cpu().numpy()
    explore = (rng.random(num_envs) < epsilon) | forced_random
    actions = np.where(explore, rng.integers(num_actions, size=num_envs), greedy)
    share = np.where(forced_random, 1.0, epsilon)
    probabilities = share / num_actions + (1 - share) * (actions == greedy)
    return actions, probabilities.astype(np.float32)


class Agent:
    """An agent combines a sampler, a target and a learner.

    | argument | meaning |
    | --- | --- |
    | learner | Q-network, loss and optimizer |
    | sampler | draws minibatches from the replay memory |
    | target | computes what their values are trained towards |
    | augmentation | changes the images that are trained on |
    """

    def __init__(
        self,
        config: AgentConfig,
        learner: Learner,
        sampler: Sampler,
        target: Target[AgentConfig],
        augmentation: Augmentation,
        stopwatch: Stopwatch,
    ) -> None:
        self.augmentation = augmentation
        self.config = config
        self.learner = learner
        self.sampler = sampler
        self.target = target
        self.stopwatch = stopwatch
        self.last_values: Tensor
        """Action values (N, A) that `act` last chose from; its next call may overwrite them."""
        device, graphs = learner.device, config.cuda_graphs
        self._staging = Staging(device)
        self._averages = Averages(("loss/huber", "q/mean", "q/max", "q/target"), device)
        self._finite = FiniteUpdates(device)
        self._ages = 0.0
        self._updates_since_line = 0
        self._values = capture(learner.values, device, enabled=graphs)
        self._playing_values = capture(learner.playing_values, device, enabled=graphs)
        self._gradient_steps = capture(
            self._learn_from,
            device,
            changes=lambda: [*learner.tensors(), self._averages.sums, *self._finite.tensors()],
            enabled=graphs,
        )

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time spent on parts of learning, for the speed log."""
        return self.stopwatch.seconds

    @property
    def needs_segments(self) -> bool:
        """Whether it learns from whole segments; other agents learn from single transitions."""
        return self.sampler.needs_segments

    def act(
        self, stacks: Tensor, **exploration: Unpack[Exploration]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose an action for each of N environments from stacks (N, stack, *frame_shape).

        Returns actions (N,) int64 and their probabilities (N,) float32 under this policy.
        """
        self.last_values = self.acting_values(stacks.to(self.learner.device))
        return epsilon_greedy(self.last_values, **exploration)

    def acting_values(self, stacks: Tensor) -> Tensor:
        """Action values (N, A) float32 to act on in training.

        Of the averaged weights if they act, otherwise of the newest; a noisy network has new noise.
        """
        if self.learner.config.average_acts:
            return self.evaluation_values(stacks)
        self.learner.noise.renew(self._staging)
        return self._values(stacks)

    def evaluation_values(self, stacks: Tensor) -> Tensor:
        """Action values (N, A) float32 to act on in evaluation."""
        return self._playing_values(stacks)

    def play(
        self, stacks: Tensor, **exploration: Unpack[Exploration]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `act`, with the evaluation weights: averaged ones, or the best learner's."""
        values = self.evaluation_values(stacks.to(self.learner.device))
        return epsilon_greedy(values, **exploration)

    def observe(self, step: VectorStep) -> None:
        """Observe a step of the training environments, or their reset."""

    def learn(self, replay: EpisodicReplay, updates: int) -> None:
        """Take `updates` gradient steps on what the replay memory holds."""
        while updates > 0:
            # Priorities are those after the last update.
            longest = 1 if self.sampler.wants_errors else self.learner.longest_group
            count = min(updates, longest, self.target.anneal())
            self._learn_group(replay, count)
            updates -= count

    def _learn_group(self, replay: EpisodicReplay, updates: int) -> None:
        """Take gradient steps whose minibatches are drawn, located and uploaded together."""
        minibatches = self.sampler.sample(replay, updates)
        prepared = self.target.prepare(replay, minibatches)
        if minibatches.weights is not None:
            prepared["weights"] = minibatches.weights
        steps, streams = minibatches.steps, minibatches.streams
        located = replay.transitions.locate(steps.ravel(), streams.ravel())
        prepared["located"] = located.reshape(*steps.shape, -1)
        prepared |= self.augmentation.draw(*steps.shape) | self.learner.noise.draw(updates)
        if self.target.augments_next_states:
            drawn = self.augmentation.draw(*steps.shape)
            prepared |= {f"next_{name}": value for name, value in drawn.items()}
        tensors = {
            name: self._staging.upload(value) if isinstance(value, np.ndarray) else value
            for name, value in prepared.items()
        }
        done = 0
        while done < updates:
            position = self._updates_since_line % MEASURED_UPDATES
            size = 1 << min(updates - done, MEASURED_UPDATES - position).bit_length() - 1
            errors = self._gradient_steps(
                replay,
                self.target.config,
                position == 0,
                **{name: tensor[done : done + size] for name, tensor in tensors.items()},
            )
            self._updates_since_line += size
            done += size
        if self.learner.count_updates(updates):
            self.sampler.drop_draws()
        if self.sampler.wants_errors:
            self.sampler.update_priorities(replay, minibatches, errors)
        # A step of the replay memory holds one agent step of each stream.
        ages = replay.transitions.num_steps - steps.mean(axis=1)
        self._ages += float(ages.sum()) * replay.num_streams

    def _learn_from(
        self,
        replay: EpisodicReplay,
        config: AgentConfig,
        measured: bool,
        *,
        located: Tensor,
        weights: Tensor | None = None,
        shifts: Tensor | None = None,
        factors: Tensor | None = None,
        noise: Tensor | None = None,
        **prepared: Tensor,
    ) -> Tensor:
        """Gradient steps on the device, one for each row of the tensors.

        `config` is what the target computes with: each is a graph of its own.

        Returns target - Q(s, a) before the last, shaped as the targets; `measured` adds the
        averages of the first.
        """
        losses = []
        for row in range(len(located)):
            if noise is not None:
                self.learner.noise.put(noise[row])
            batch = self.target.batch(replay, located[row])
            targets = self.target(batch, **{name: each[row] for name, each in prepared.items()})
            shift, factor, weight = (
                None if each is None else each[row] for each in (shifts, factors, weights)
            )
            states = self.augmentation.apply(batch.states, shift, factor)
            with record_function("update"):
                loss, values = self.learner.update(states, batch.actions, targets, weight)
                losses.append(loss)
                if measured and row == 0:
                    # With several learners, averaged over them too.
                    self._averages.add(loss.mean(), values.mean(), values.max(), targets.mean())
        self._finite.add(losses)
        return targets - values

    def first_failed_update(self) -> int | None:
        """The first update whose loss was not finite, or the last if weights are not; else None."""
        failed = self._finite.first_failure()
        if failed is None and not all_finite(self.learner.tensors()):
            return self.learner.updates
        return failed

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, for the logs."""
        metrics = self._averages.take()
        if self._updates_since_line:
            metrics["replay/age_agent_steps"] = self._ages / self._updates_since_line
        self._ages, self._updates_since_line = 0.0, 0
        return {**metrics, **self.target.metrics(), **self.sampler.metrics()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "sampler": self.sampler.state_dict(),
            "target": self.target.state_dict(),
            "augmentation": self.augmentation.state_dict(),
            "averages": self._averages.state_dict(),
            "ages": self._ages,
            "updates_since_line": self._updates_since_line,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, {"ages": 0.0, "updates_since_line": 0}, path="agent/")
        self.learner.load_state_dict(state["learner"])
        self._finite.start_at(state["learner"]["updates"])
        self.sampler.load_state_dict(state["sampler"])
        self.target.load_state_dict(state["target"])
        self.augmentation.load_state_dict(state.get("augmentation", {}))
        self._averages.load_state_dict(state["averages"])
        self._ages = state["ages"]
        self._updates_since_line = state["updates_since_line"]

    def check_memory(self, replay: EpisodicReplay) -> None:
        """Raise `EbuError` where what was loaded is not of this memory."""
        self.sampler.check_loaded(replay, self.learner.target_axes)


def policy_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """Weights used for evaluation, by their names in the network, from an agent's `state_dict`.

    Averaged weights if there are any, otherwise the online ones; of several learners the best's,
    of a noisy network without the scales of the noise.
    """
    learner = state["learner"]
    weights = without_noise(learner.get("average", learner["online"]))
    if "best" not in state:
        return weights
    return {name.removeprefix("networks."): each[state["best"]] for name, each in weights.items()}
