"""Exploration over a run. No schedule depends on how long the run is."""

from dataclasses import dataclass

from ebu.run.settings import NotNegative, Share


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


def epsilon_at(config: ExplorationConfig, learning_steps: int) -> float:
    """Epsilon after `learning_steps` agent steps with updates: it does not fall before learning."""
    fraction = min(1.0, learning_steps / max(1, config.epsilon_decay_steps))
    return config.epsilon_start + fraction * (config.epsilon_end - config.epsilon_start)
