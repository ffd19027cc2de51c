"""Playing vector environments in tests, here and in a new process."""

from typing import Any

import numpy as np

from envs import AtariVector, GymnasiumVector, VectorEnvironment, VectorStep


def actions_for(env: VectorEnvironment, steps: int, seed: int = 0) -> np.ndarray:
    """(steps, N) int64, uniformly random."""
    shape = (steps, env.num_envs)
    return np.random.default_rng(seed).integers(env.num_actions, size=shape)


def play(env: VectorEnvironment, actions: np.ndarray) -> list[VectorStep]:
    """Send the rows of `actions`, (steps, N), one after the other."""
    steps = []
    for row in actions:
        env.send(row)
        steps.append(env.recv())
    return steps


def assert_same(ours: list[VectorStep], theirs: list[VectorStep]) -> None:
    """Two stretches of play are the same, bit for bit."""
    assert len(ours) == len(theirs)
    for t, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        for name, a, b in zip(VectorStep._fields, one, other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} at step {t}")
            assert a.dtype == b.dtype


def make(kind: str, name: str, num_envs: int, options: dict[str, Any]) -> VectorEnvironment:
    if kind == "atari":
        return AtariVector(name, num_envs, **options)
    return GymnasiumVector(name, num_envs, **options)


def continue_from(
    construction: tuple[str, str, int, dict[str, Any]], state: dict[str, Any], actions: np.ndarray
) -> list[VectorStep]:
    """Restore and play on; runs in a new process."""
    env = make(*construction)
    try:
        env.load_state_dict(state)
        return play(env, actions)
    finally:
        env.close()
