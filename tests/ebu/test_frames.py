"""The stacks an agent acts on."""

import numpy as np
import pytest
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


def test_the_newest_frame_is_last_and_zeros_come_before_a_games_first() -> None:
    frames = stack_of()
    assert shown(frames.push(frame(1, 5), started(1, 1))) == [[0, 0, 1], [0, 0, 5]]
    assert shown(frames.push(frame(2, 6), started(0, 0))) == [[0, 1, 2], [0, 5, 6]]
    assert shown(frames.push(frame(3, 7), started(0, 0))) == [[1, 2, 3], [5, 6, 7]]
    assert shown(frames.push(frame(4, 8), started(0, 1))) == [[2, 3, 4], [0, 0, 8]]
    assert shown(frames.push(frame(5, 9), started(0, 0))) == [[3, 4, 5], [0, 8, 9]]
    assert shown(frames.stacks) == [[3, 4, 5], [0, 8, 9]]


def test_a_stack_of_one_is_the_newest_frame() -> None:
    frames = stack_of(stack=1)
    assert shown(frames.push(frame(1, 5), started(1, 1))) == [[1], [5]]
    assert shown(frames.push(frame(2, 6), started(0, 1))) == [[2], [6]]


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("frame_shape", [(84, 84), (6,)])
def test_frames_of_any_shape_come_through_unchanged(
    dtype: torch.dtype, frame_shape: tuple[int, ...]
) -> None:
    frames = stack_of(3, 4, frame_shape, dtype)
    values = torch.randint(256, (3, *frame_shape)).to(dtype).numpy()
    stacks = frames.push(values, started(1, 1, 1))
    assert stacks.shape == (3, 4, *frame_shape)
    assert stacks.dtype == dtype
    assert np.array_equal(stacks[:, -1].numpy(), values)
    assert not stacks[:, :-1].any()


def test_a_frame_the_environment_writes_over_stays_as_it_was() -> None:
    frames, buffer = stack_of(), frame(1, 5)
    frames.push(buffer, started(1, 1))
    buffer[:] = 9
    assert shown(frames.stacks) == [[0, 0, 1], [0, 0, 5]]


def test_a_restored_stack_goes_on() -> None:
    frames, restored = stack_of(), stack_of()
    frames.push(frame(1, 5), started(1, 1))
    frames.push(frame(2, 6), started(0, 0))
    restored.load_state_dict({key: x.clone() for key, x in frames.state_dict().items()})
    for each in (frames, restored):
        assert shown(each.push(frame(3, 7), started(0, 1))) == [[1, 2, 3], [0, 0, 7]]
