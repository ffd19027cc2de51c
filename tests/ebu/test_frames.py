"""The stacks an agent acts on."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebu.frames import FrameStack

CPU = torch.device("cpu")


def stack_of(
    num_envs: int = 2,
    stack: int = 3,
    frame_shape: tuple[int, ...] = (2,),
    dtype: torch.dtype = torch.float32,
) -> FrameStack:
    return FrameStack(num_envs, frame_shape, dtype, stack, CPU)


def frame(*values: float) -> np.ndarray:
    """One frame for each environment, of two equal numbers."""
    return np.repeat(np.array(values, dtype=np.float32)[:, None], 2, axis=1)


def shown(stacks: torch.Tensor) -> list[list[float]]:
    """The first number of every frame: (N, stack)."""
    values: list[list[float]] = stacks[:, :, 0].tolist()
    return values


def started(*flags: int) -> np.ndarray:
    return np.array(flags, dtype=bool)


@given(
    num_envs=st.integers(1, 4),
    stack=st.integers(1, 5),
    steps=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=20),
)
def test_a_stack_holds_the_last_frames_of_its_game(
    num_envs: int, stack: int, steps: list[list[bool]]
) -> None:
    frames = stack_of(num_envs, stack)
    games: list[list[float]] = [[] for _ in range(num_envs)]
    for number, flags in enumerate(steps, 1):
        flags = [flag or number == 1 for flag in flags[:num_envs]]
        newest = [100.0 * j + number for j in range(num_envs)]
        for j in range(num_envs):
            games[j] = ([] if flags[j] else games[j]) + [newest[j]]
        expected = [([0.0] * stack + game)[-stack:] for game in games]
        assert shown(frames.push(frame(*newest), np.array(flags))) == expected


def test_a_frame_the_environment_writes_over_stays_as_it_was() -> None:
    frames, buffer = stack_of(), frame(1, 5)
    frames.push(buffer, started(1, 1))
    buffer[:] = 9
    assert shown(frames.stacks) == [[0, 0, 1], [0, 0, 5]]
