"""Exploration over a run. No schedule depends on how long the run is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExplorationConfig:
    """Epsilon-greedy exploration."""

    epsilon_start: float = 1.0
    """Share of random actions until learning starts."""
    epsilon_end: float = 0.01
    """Share of random actions after the decay."""
    epsilon_decay_steps: int = 50_000
    """Agent steps, counted from the start of learning, over which epsilon falls linearly."""
    random_start_actions: int = 0
    """First actions of every game drawn at random, in training and in evaluation."""


def epsilon_at(config: ExplorationConfig, agent_steps: int, learning_starts: int) -> float:
    """Epsilon after `agent_steps` agent steps: linear from the start of learning."""
    progress = (agent_steps - learning_starts) / max(1, config.epsilon_decay_steps)
    fraction = min(1.0, max(0.0, progress))
    return config.epsilon_start + fraction * (config.epsilon_end - config.epsilon_start)
