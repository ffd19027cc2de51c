"""What the method asks of environments and agents, which satisfy it without importing it."""

from typing import Any, NotRequired, Protocol, TypedDict, Unpack

import numpy as np
from torch import Tensor

from ebu.replay import EpisodicReplay


class VectorStep(Protocol):
    """One step of N environments; row j belongs to environment j.

    | field | shape, dtype | meaning |
    | --- | --- | --- |
    | frames | (N, *frame_shape) | the newest frame of each environment |
    | rewards | (N,) float32 | raw rewards |
    | terminated | (N,) bool | the game is over |
    | truncated | (N,) bool | the game was cut by its time limit |
    | life_lost | (N,) bool | a life was lost and the game continues |
    | started | (N,) bool | first frame of a new game; the action was ignored |
    """

    @property
    def frames(self) -> np.ndarray: ...
    @property
    def rewards(self) -> np.ndarray: ...
    @property
    def terminated(self) -> np.ndarray: ...
    @property
    def truncated(self) -> np.ndarray: ...
    @property
    def life_lost(self) -> np.ndarray: ...
    @property
    def started(self) -> np.ndarray: ...


class VectorEnvironment(Protocol):
    """N environments stepped together; `send` and `recv` are the two halves of a step.

    | member | meaning |
    | --- | --- |
    | num_envs, num_actions | N, and A: actions are 0 to A - 1 |
    | frame_shape, frame_dtype | of one frame: uint8 or float32 |
    | stack | newest frames that make a state |
    | frames_per_step | emulator frames in an agent step: 4 on Atari, 1 elsewhere |
    | reset() | begins a game in every environment; all have `started` |
    | send(actions), recv() | actions (N,) integer; what one step of each environment gave |
    | state_dict() | all that `load_state_dict` needs to continue bit for bit; not while a step |
    | | is between `send` and `recv` |
    """

    @property
    def num_envs(self) -> int: ...
    @property
    def num_actions(self) -> int: ...
    @property
    def frame_shape(self) -> tuple[int, ...]: ...
    @property
    def frame_dtype(self) -> np.dtype[Any]: ...
    @property
    def stack(self) -> int: ...
    @property
    def frames_per_step(self) -> int: ...
    def reset(self) -> VectorStep: ...
    def send(self, actions: np.ndarray) -> None: ...
    def recv(self) -> VectorStep: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class TrainingEnvironment(VectorEnvironment, Protocol):
    """Environments whose games can be left and begun again."""

    @property
    def observation(self) -> str:
        """What the observations are taken for, in one line."""
        ...

    def seedings(self) -> dict[str, Any]:
        """What `start_fresh` needs, also in the middle of a step that failed."""
        ...

    def reseed(self, seed: int) -> None:
        """Forget all games: what follows, from `reset` on, is as if made with this seed."""
        ...

    def start_fresh(self, state: dict[str, Any]) -> VectorStep:
        """Begin new games with seeds after those of a saved state, or of `seedings`."""
        ...


class Exploration(TypedDict):
    """How a policy explores.

    | key | shape, dtype | meaning |
    | --- | --- | --- |
    | epsilon | | share of random actions |
    | rng | | draws them |
    | forced_random | (N,) bool | forced random regardless of epsilon; default: none |
    """

    epsilon: float
    rng: np.random.Generator
    forced_random: NotRequired[np.ndarray | None]


class Act(Protocol):
    """A policy: chooses an action for each of N environments, greedily but for ε.

    Called with stacks (N, stack, *frame_shape), what the environments show. Returns actions (N,)
    int64 and the probabilities (N,) float32 with which each was chosen.
    """

    def __call__(
        self, stacks: Tensor, **exploration: Unpack[Exploration]
    ) -> tuple[np.ndarray, np.ndarray]: ...


class LearningAgent(Protocol):
    """What the training loop asks of an agent."""

    last_values: Tensor
    """Action values (N, A) that `act` last chose from."""

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time spent on parts of learning."""
        ...

    @property
    def needs_segments(self) -> bool:
        """Whether it learns from whole segments; other agents learn from single transitions."""
        ...

    @property
    def act(self) -> Act:
        """Choose actions in training."""
        ...

    def observe(self, step: VectorStep) -> None: ...
    def learn(self, replay: EpisodicReplay, updates: int) -> None: ...
    def first_failed_update(self) -> int | None:
        """The first update after which loss or weights are not finite; None if there is none."""

    def metrics(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def check_memory(self, replay: EpisodicReplay) -> None:
        """Raise `EbuError` where the state that was loaded is not of this memory."""


class Distiller(Protocol):
    """Trains other networks on what the agent learns from; the agent never depends on it."""

    def learn(self, replay: EpisodicReplay, updates: int) -> None:
        """Train after the agent has made `updates` more updates."""

    def first_failed_update(self) -> tuple[str, int] | None:
        """A network whose loss or weights are not finite, and its update; None if all are."""

    def set_teacher(self) -> None:
        """Make the agent as it is now the teacher: its evaluation is the best so far."""

    def metrics(self) -> dict[str, float]: ...
    def save(self, frames: int) -> None:
        """Write the trained networks: a checkpoint was just written."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
