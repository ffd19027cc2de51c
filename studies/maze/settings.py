"""What the maze study measures: its settings, each one density with one kind of moves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np

from ebu.errors import UsageError
from ebu.run.settings import Bounds, NotNegative, Positive
from envs.maze import load_digits

SLIP_PROBABILITY = 0.2


@dataclass(frozen=True)
class StudyConfig:
    """What is studied."""

    out: Path
    """Directory for results, tables and picture; finished settings in it are not repeated."""
    full: bool = False
    """200,000 agent steps of every agent instead of 100,000."""
    steps: Positive | None = None
    """Another number of agent steps."""
    mazes: Annotated[int, Bounds(least=2)] = 30
    """Mazes for each density."""
    densities: tuple[Annotated[int, Bounds(least=0, most=60)], ...] = (20, 30, 40, 50)
    """Densities of walls, in per cent."""
    seed: NotNegative = 0
    """Seed of everything random but the mazes."""
    processes: Positive = 2
    """Settings measured at a time, each in a process of one thread."""


@dataclass(frozen=True)
class Setting:
    """One density with one kind of moves, and how it is measured."""

    density: int
    stochastic: bool
    agent_steps: int
    mazes: int
    seed: int

    @property
    def name(self) -> str:
        """As in file names: `density-20-stochastic`."""
        moves = "stochastic" if self.stochastic else "deterministic"
        return f"density-{self.density}-{moves}"

    @property
    def slip_probability(self) -> float:
        """Chance that a move turns to a perpendicular one."""
        return SLIP_PROBABILITY if self.stochastic else 0.0


def settings_of(config: StudyConfig) -> list[Setting]:
    """All settings of a study. Raises `UsageError` for what cannot be studied."""
    if config.full and config.steps is not None:
        raise UsageError("--full is --steps 200000: leave one of them out")
    if len(set(config.densities)) < len(config.densities) or not config.densities:
        raise UsageError("--densities needs at least one density, and none of them twice")
    steps = config.steps or (200_000 if config.full else 100_000)
    try:
        load_digits()
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(str(error)) from None
    return [
        Setting(density, stochastic, steps, config.mazes, config.seed)
        for density in config.densities
        for stochastic in (False, True)
    ]


def seed_of(setting: Setting, maze: int, part: str) -> int:
    """The seed of one random part of one maze, the same for both kinds of moves."""
    words = [setting.seed, setting.density, maze, *part.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
