"""When a run explores, updates, logs, evaluates and saves; nothing depends on its length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ebu.run.settings import Bounds, NotNegative, Positive, PositiveFloat, Share

EARLY_LINES = (1_000, 2_000, 5_000)
"""Frames at which lines of metrics are written, in addition to the interval."""


@dataclass(frozen=True)
class ExplorationConfig:
    """Epsilon-greedy exploration."""

    epsilon_start: Share = 1.0
    """Share of random actions until learning starts."""
    epsilon_end: Share = 0.01
    """Share of random actions after the decay."""
    epsilon_decay_steps: NotNegative = 50_000
    """Agent steps with updates over which epsilon falls linearly."""
    random_start_actions: NotNegative = 0
    """First actions of every game drawn at random, in training and in evaluation."""


@dataclass(frozen=True)
class LoopConfig:
    """When to update, log, evaluate and save."""

    updates_per_step: Annotated[float, Bounds(above=0, most=1_000)] = 1.0
    """Gradient steps per agent step, whatever the number of environments."""
    learning_starts: NotNegative = 5_000
    """Agent steps before the first update."""
    log_every_frames: Positive = 10_000
    """Frames between two lines of metrics."""
    eval_every_frames: NotNegative | None = None
    """Frames between two evaluations; 0 turns them off [default: 100,000 in the first million
    frames, then 1,000,000]."""
    eval_episodes: Annotated[int, Bounds(1, 1_000_000)] = 10
    """Games in an evaluation."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Minutes between two checkpoints; changes nothing in the run."""
    overlap: bool = True
    """Let the emulators play while the learner learns; changes nothing in the run but its speed."""


def epsilon_at(config: ExplorationConfig, learning_steps: int) -> float:
    """Epsilon after `learning_steps` agent steps with updates: it does not fall before learning."""
    fraction = min(1.0, learning_steps / max(1, config.epsilon_decay_steps))
    return config.epsilon_start + fraction * (config.epsilon_end - config.epsilon_start)


class Schedule:
    """Frame counts at which something is due: `early`, then multiples of `every`; 0: none."""

    def __init__(self, every: int, early: Sequence[int] = ()) -> None:
        self.every = every
        self.early = early
        self.done(0)

    def due(self, frames: int) -> bool:
        return self.every > 0 and frames >= self.next

    def done(self, frames: int) -> None:
        """Move on to the first point after `frames`."""
        later = [point for point in self.early if point > frames]
        if self.every > 0:
            later.append((frames // self.every + 1) * self.every)
        self.next = min(later, default=0)


def evaluation_schedule(every: int | None) -> Schedule:
    """Evaluations at this interval; None: ten in the first million frames, then one a million."""
    if every is None:
        return Schedule(1_000_000, range(100_000, 1_000_000, 100_000))
    return Schedule(every)
