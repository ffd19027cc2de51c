"""Q-learners of many small mazes, trained side by side in one batched network.

Each learner has weights, target weights, an optimizer, a memory and random streams of its own, and
learns as it would alone; stacked, a hundred of them share every matrix multiplication. The methods
differ in how transitions are drawn and what their targets are, and in nothing else.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ebu.targets import backward_targets, one_step_targets
from envs.maze import ManySteps


@dataclass(frozen=True)
class MazeLearningConfig:
    """The paper's settings of the maze; network, reward scale and learning's start are ours."""

    gamma: float = 0.9
    learning_rate: float = 1e-3
    reward_scale: float = 0.01
    """Rewards are multiplied by this. With values near 1,000, two thousand steps of Adam at this
    learning rate do not suffice to reach even targets that are known beforehand."""
    units: int = 64
    """Units of either hidden layer."""
    batch_size: int = 350
    memory_size: int = 30_000
    """A learner's newest transitions, from which it draws."""
    learning_starts: int = 1_000
    """Agent steps before the first update: as long as a game can take, so each has an episode."""
    update_every_steps: int = 50
    target_sync_steps: int = 2_000
    epsilon_decay_steps: int = 200_000
    """Agent steps in which ε falls from 1 to 0, as (1 − t/decay)²."""


class Method(NamedTuple):
    """How transitions are drawn and what their targets are.

    | field | meaning |
    | --- | --- |
    | whole_episodes | episodes, from the end backward; otherwise single transitions, uniformly |
    | beta | diffusion factor of the backward targets; 0 makes them one-step targets |
    | follows_play | only the value of the action taken next counts: with β = 1 the target is the |
    | | return of the rest of the episode |
    """

    whole_episodes: bool
    beta: float
    follows_play: bool = False


METHODS = {
    "one-step": Method(whole_episodes=False, beta=0.0),
    "n-step": Method(whole_episodes=True, beta=1.0, follows_play=True),
    "ebu-0": Method(whole_episodes=True, beta=0.0),
    "ebu-0.5": Method(whole_episodes=True, beta=0.5),
    "ebu-0.75": Method(whole_episodes=True, beta=0.75),
    "ebu-1": Method(whole_episodes=True, beta=1.0),
}
"""n-step with n the length of the episode; `ebu-0` has one-step targets on episodes: it tells what
the order of the draws does from what the targets do."""


class BatchedNetworks(nn.Module):
    """N networks of the same shape, each with weights of its own: He-uniform, zero biases.

    One layer reads either image, as a convolution would with the same weights for both; a second
    one joins what it found in the two; ReLU after each; one output for each action.

    | argument | meaning |
    | --- | --- |
    | pixels, units, num_actions | sizes: of an image, of either layer, of the output |
    | generators | N; each draws the initial weights of its network |
    """

    def __init__(
        self, pixels: int, units: int, num_actions: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in ((pixels, units), (2 * units, units), (units, num_actions)):
            stacked = torch.empty(len(generators), inputs, outputs)
            for weight, generator in zip(stacked, generators, strict=True):
                # torch takes the second axis for the inputs.
                nn.init.kaiming_uniform_(weight.T, nonlinearity="relu", generator=generator)
            self.weights.append(nn.Parameter(stacked))
            self.biases.append(nn.Parameter(torch.zeros(len(generators), 1, outputs)))

    def forward(self, images: Tensor) -> Tensor:
        """Pairs of images (N, B, 2, pixels) → action values (N, B, A); row i through network i."""
        read, join, value = self.weights
        of_reading, of_joining, of_value = self.biases
        features = torch.baddbmm(of_reading, images.flatten(1, 2), read).relu_()
        joined = torch.baddbmm(of_joining, features.view(*images.shape[:2], -1), join).relu_()
        return torch.baddbmm(of_value, joined, value)


class Piece(NamedTuple):
    """Consecutive transitions of one episode in a learner's minibatch."""

    learner: int
    position: int  # of its first transition in the minibatch
    first: int  # agent step of its first transition
    length: int
    continued: bool  # its last transition is not the episode's: that was in the minibatch before


class MazeLearners:
    """N learners that act, remember and learn in lockstep.

    | argument | meaning |
    | --- | --- |
    | methods | N; what each learner does |
    | seeds | N; two learners with the same seed start from the same weights |
    | images | (P, D) float32; a state is two of its rows, given as their indices |
    | num_actions | A |
    | max_steps | agent steps the memory has room for |
    """

    def __init__(
        self,
        config: MazeLearningConfig,
        methods: Sequence[Method],
        seeds: Sequence[int],
        *,
        images: np.ndarray,
        num_actions: int,
        max_steps: int,
    ) -> None:
        self.config = config
        self.steps = 0
        """Agent steps of each learner."""
        self.updates = 0
        self._methods = list(methods)
        self._num_actions = num_actions
        self._images = torch.from_numpy(images)
        streams = [np.random.SeedSequence(seed).spawn(3) for seed in seeds]
        self._acting, self._drawing = (
            [np.random.default_rng(stream[part]) for stream in streams] for part in (0, 1)
        )
        self.online, self.target = (
            BatchedNetworks(
                images.shape[1],
                config.units,
                num_actions,
                [
                    torch.Generator().manual_seed(int(stream[2].generate_state(1, np.uint64)[0]))
                    for stream in streams
                ],
            )
            for _ in range(2)
        )
        self.target.requires_grad_(False)
        # Elementwise, so stacked weights take the steps they would take alone.
        self._optimizer = torch.optim.Adam(
            self.online.parameters(), lr=config.learning_rate, fused=True
        )
        self._memory = Memory(max_steps, len(methods), config.memory_size)
        self._uniform = np.empty((len(methods), 0, 2))
        # The episode each learner is working off: its start, the transitions still to come, and
        # the target of the last one that was trained on.
        self._start = np.zeros(len(methods), dtype=np.int64)
        self._left = np.zeros(len(methods), dtype=np.int64)
        self._following = np.zeros(len(methods))

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        return max(0.0, 1.0 - self.steps / self.config.epsilon_decay_steps) ** 2

    def act(self, images: np.ndarray) -> np.ndarray:
        """ε-greedy actions (N,) int64 for states (N, 2)."""
        row = self.steps % 1_000
        if row == 0:
            self._uniform = np.stack([rng.random((1_000, 2)) for rng in self._acting])
        explores, action = self._uniform[:, row].T
        greedy = self.greedy(images[:, None])[:, 0]
        return np.where(explores < self.epsilon, (action * self._num_actions).astype(int), greedy)

    @torch.no_grad()
    def greedy(self, images: np.ndarray) -> np.ndarray:
        """The best actions (N, B) int64 of B states for each learner, (N, B, 2)."""
        best: np.ndarray = self._values(self.online, torch.from_numpy(images)).argmax(-1).numpy()
        return best

    def remember(self, images: np.ndarray, actions: np.ndarray, step: ManySteps) -> None:
        """Store a step of every learner, images (N, 2) and actions (N,); learn if it is time."""
        config = self.config
        self._memory.append(images, actions, step, config.reward_scale)
        self.steps += 1
        if self.steps % config.update_every_steps == 0 and self.steps >= config.learning_starts:
            self._learn()
        if self.steps % config.target_sync_steps == 0:
            self.target.load_state_dict(self.online.state_dict())

    def _learn(self) -> None:
        """One update of every learner: the mean squared error over its own minibatch."""
        steps, targets = self.draw_minibatches()
        owners = np.arange(len(self._methods))[:, None]
        actions = torch.from_numpy(self._memory.actions[steps, owners]).long()
        images = torch.from_numpy(self._memory.images[steps, owners])
        values = self._values(self.online, images).gather(-1, actions[..., None]).squeeze(-1)
        loss = (values - targets).square().mean(dim=1).sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.updates += 1

    @torch.no_grad()
    def draw_minibatches(self) -> tuple[np.ndarray, Tensor]:
        """The next minibatch of every learner.

        Returns the agent steps of its transitions, (N, batch_size) int64, and their targets,
        (N, batch_size) float32. An episode that does not fit is continued in the next minibatch,
        from where it was left towards its start.
        """
        steps, pieces = self._draw()
        memory, owners = self._memory, np.arange(len(self._methods))[:, None]
        next_values = self._values(self.target, torch.from_numpy(memory.next_images[steps, owners]))
        targets = one_step_targets(
            torch.from_numpy(memory.rewards[steps, owners]),
            next_values,
            torch.from_numpy(memory.terminated[steps, owners]),
            gamma=self.config.gamma,
        )
        # Pieces of about the same length together, so that there is little padding.
        alike: defaultdict[int, list[Piece]] = defaultdict(list)
        for piece in pieces:
            if self._methods[piece.learner].beta > 0.0:
                alike[piece.length.bit_length()].append(piece)
        for group in alike.values():
            self._propagate(group, next_values, targets)
        for piece in pieces:  # a learner's last one is the one that may be continued
            self._following[piece.learner] = targets[piece.learner, piece.position]
        return steps, targets

    def _draw(self) -> tuple[np.ndarray, list[Piece]]:
        """The agent steps of the next minibatches, (N, batch_size), and the pieces in them."""
        size = self.config.batch_size
        steps = np.empty((len(self._methods), size), dtype=np.int64)
        pieces: list[Piece] = []
        for learner, method in enumerate(self._methods):
            rng = self._drawing[learner]
            if not method.whole_episodes:
                steps[learner] = self._memory.draw_transitions(rng, size)
                continue
            position = 0
            while position < size:
                continued = bool(self._left[learner])
                if not continued:
                    self._start[learner], self._left[learner] = self._memory.draw_episode(
                        learner, rng
                    )
                length = min(int(self._left[learner]), size - position)
                self._left[learner] -= length
                first = int(self._start[learner] + self._left[learner])
                steps[learner, position : position + length] = np.arange(first, first + length)
                pieces.append(Piece(learner, position, first, length, continued))
                position += length
        return steps, pieces

    def _propagate(self, pieces: list[Piece], next_values: Tensor, targets: Tensor) -> None:
        """Put the backward targets of pieces into `targets` (N, batch_size).

        Where the episode's later transitions were in the minibatch before, their first target
        comes in as the reward of a last, terminal step: then y_k is what the unbroken recursion
        gives.
        """
        learner, position, first, length, continued = (
            np.array(part) for part in zip(*pieces, strict=True)
        )
        methods = [self._methods[i] for i in learner]
        row, column = np.arange(len(pieces)), np.arange(length.max() + 1)
        padded = np.minimum(position[:, None] + column, next_values.shape[1] - 1)
        values = next_values[learner[:, None], padded]
        steps = np.minimum(first[:, None] + column, self.steps - 1)
        rewards = self._memory.rewards[steps, learner[:, None]].astype(np.float64)
        rewards[row, length] = self._following[learner]
        actions = torch.from_numpy(self._memory.actions[steps, learner[:, None]]).long()
        follows_play = torch.tensor([method.follows_play for method in methods])
        if follows_play.any():
            taken = torch.zeros_like(values, dtype=torch.bool)
            taken[:, :-1].scatter_(-1, actions[:, 1:, None], True)
            taken[row, length - 1 + continued] = True  # the end bootstraps from the best action
            values = values.masked_fill(follows_play[:, None, None] & ~taken, -torch.inf)
        last = first + length - 1
        propagated = backward_targets(
            torch.from_numpy(rewards),
            values,
            actions,
            torch.from_numpy(self._memory.terminated[last, learner] | continued),
            gamma=self.config.gamma,
            beta=torch.tensor([[method.beta for method in methods]]),
            lengths=torch.from_numpy(length + continued),
        )[0]
        which, where = np.nonzero(column < length[:, None])
        targets[learner[which], padded[which, where]] = propagated[which, where]

    def _values(self, networks: BatchedNetworks, images: Tensor) -> Tensor:
        """Action values (N, B, A) of states (N, B, 2)."""
        pixels = self._images.index_select(0, images.flatten().int())
        values: Tensor = networks(pixels.view(*images.shape, -1))
        return values


class Memory:
    """All transitions of N learners; row t is agent step t of each of them.

    Nothing is overwritten; draws take from the newest `size` transitions.
    """

    def __init__(self, max_steps: int, num_learners: int, size: int) -> None:
        self.images = np.zeros((max_steps, num_learners, 2), dtype=np.int16)
        self.next_images = np.zeros((max_steps, num_learners, 2), dtype=np.int16)
        self.actions = np.zeros((max_steps, num_learners), dtype=np.uint8)
        self.rewards = np.zeros((max_steps, num_learners), dtype=np.float32)
        self.terminated = np.zeros((max_steps, num_learners), dtype=bool)
        self._size = size
        self._steps = 0
        self._started = np.zeros(num_learners, dtype=np.int64)
        self._episodes: list[list[tuple[int, int]]] = [[] for _ in range(num_learners)]
        self._oldest = [0] * num_learners  # index of each learner's first whole episode

    def append(
        self, images: np.ndarray, actions: np.ndarray, step: ManySteps, reward_scale: float
    ) -> None:
        """Add one step of every learner."""
        row = self._steps
        self.images[row], self.next_images[row] = images, step.next_images
        self.actions[row], self.rewards[row] = actions, reward_scale * step.rewards
        self.terminated[row] = step.terminated
        self._steps += 1
        for learner in np.flatnonzero(step.terminated | step.truncated):
            start = int(self._started[learner])
            self._episodes[learner].append((start, self._steps - start))
            self._started[learner] = self._steps

    def draw_transitions(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """The agent steps (count,) of transitions drawn uniformly."""
        return rng.integers(max(0, self._steps - self._size), self._steps, size=count)

    def draw_episode(self, learner: int, rng: np.random.Generator) -> tuple[int, int]:
        """The start and the length of a finished episode drawn uniformly."""
        episodes = self._episodes[learner]
        while episodes[self._oldest[learner]][0] < self._steps - self._size:
            self._oldest[learner] += 1
        return episodes[int(rng.integers(self._oldest[learner], len(episodes)))]
