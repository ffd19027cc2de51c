"""Whether a game is a function of its seed and actions, asked by playing two copies."""

from collections.abc import Generator
from typing import Any

import numpy as np

from envs.boundary import Environment, Recipe
from envs.faults import EnvironmentFault, EnvironmentHang
from envs.watchdog import Watchdog

STEPS, LAG = 64, 16
"""Steps of each copy, and of the first alone: what both share differs where they take turns, what
one leaves behind where they do not."""


def find_difference(recipe: Recipe, seed: int) -> str | None:
    """In a few words what differs between two copies with one seed; None where all is equal.

    A fault is left for play to meet, where it is reported and what was learned is saved. Raises
    EnvironmentHang, for which nobody should wait twice.
    """
    watchdog = Watchdog(lambda: recipe.game)
    first, second = _play(recipe, seed, watchdog), _play(recipe, seed, watchdog)
    try:
        seen: list[tuple[str, Any]] = []
        compared = 0
        while True:
            entry = next(first, None)
            if entry is not None:
                name, value = entry
                seen.append((name, np.array(value)))  # environments may write over theirs
            if entry is None or len(seen) > LAG:
                (name, theirs), other = seen[compared], next(second, None)
                if other is None or other[0] != name or not np.array_equal(other[1], theirs):
                    return f"its {name} differs"
                compared += 1
            if compared == len(seen):
                return None
    finally:
        first.close()
        second.close()
        watchdog.stop()


def _play(recipe: Recipe, seed: int, watchdog: Watchdog) -> Generator[tuple[str, Any]]:
    env = None
    try:
        env = Environment(recipe, 0, watchdog)
        actions = np.random.default_rng(seed).integers(env.num_actions, size=STEPS)
        yield "first observation", env.frame(env.reset(seed))
        for step, action in enumerate(actions.tolist(), 1):
            observation, reward, terminated, truncated = env.step(action)
            yield f"observation after step {step}", env.frame(observation)
            yield f"reward of step {step}", reward
            yield f"end after step {step}", (terminated, truncated)
            if terminated or truncated:
                yield f"observation of a game begun after step {step}", env.frame(env.reset())
    except EnvironmentHang:
        env = None  # nor would it answer when it is closed
        raise
    except EnvironmentFault as fault:
        yield "fault", str(fault)
    finally:
        if env is not None:
            env.close()
