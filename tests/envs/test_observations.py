"""What observations are taken for: images, grids, numbers, states; and what is refused."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from envs.observations import channel_axis, grey_frame, observations_of


def box(low: float, high: float, *shape: int, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def colour_image(side: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("space", "show", "stack"),
    [
        (box(0, 255, 40, 40, 3), lambda image: image, 4),
        (box(0, 255, 3, 40, 40), lambda image: image.transpose(2, 0, 1), 4),
        (box(0, 1, 40, 40, 3, dtype=np.float32), lambda image: image / 255, 4),
        (box(-1, 1, 40, 40, 3, dtype=np.float64), lambda image: image / 127.5 - 1, 4),
        (box(0, 255, 40, 40, 3, dtype=np.float32), lambda image: image.astype(np.float32), 4),
        (box(0, 255, 2, 40, 40, 3), lambda image: np.stack([image * 0, image]), 2),
        (box(0, 255, 2, 3, 40, 40), lambda image: np.stack([image * 0, image]).swapaxes(1, 3), 2),
        (box(0, 255, 40, 40, 6), lambda image: np.concatenate([image * 0, image], axis=2), 2),
    ],
)
def test_the_same_image_gives_the_same_frame_however_it_is_stored(
    space: spaces.Box, show: Any, stack: int
) -> None:
    image, taken = colour_image(), observations_of(space)
    if space.shape == (2, 3, 40, 40):  # axes 1 and 3 are exchanged, and so are rows and columns
        image = image.swapaxes(0, 1)
        shown = np.stack([image * 0, image]).transpose(0, 3, 1, 2)
    else:
        shown = show(image)
    frame = taken.read(shown)
    assert (taken.frame_shape, taken.stack) == ((84, 84), stack)
    np.testing.assert_array_equal(frame, grey_frame(image))
    assert taken.picture is not None
    np.testing.assert_array_equal(taken.picture(shown), image)


def test_of_stacked_grey_frames_the_newest_is_taken() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (4, 84, 84), dtype=np.uint8)
    for space, shown in (
        (box(0, 255, 4, 84, 84), frames),
        (box(0, 255, 84, 84, 4), frames.transpose(1, 2, 0)),
    ):
        taken = observations_of(space)
        assert taken.stack == 4
        np.testing.assert_array_equal(taken.read(shown), frames[-1])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((10, 10, 4), 2), ((4, 10, 10), 0), ((10, 10, 10), 2), ((5, 7, 3), 2), ((3, 5, 7), 0)],
)
def test_the_channels_are_the_axis_that_leaves_a_square_or_is_shorter(
    shape: tuple[int, ...], axis: int
) -> None:
    assert channel_axis(shape) == axis


def test_grids_keep_their_cells() -> None:
    cells = np.random.default_rng(1).integers(0, 11, (7, 7, 3), dtype=np.uint8)
    world = observations_of(box(0, 255, 7, 7, 3))
    assert (world.frame_shape, world.frame_dtype) == ((3, 7, 7), np.dtype(np.uint8))
    np.testing.assert_array_equal(world.read(cells), cells.transpose(2, 0, 1))
    flags = observations_of(spaces.Box(0, 1, (10, 10, 4), bool))
    assert set(np.unique(flags.read(np.eye(40, dtype=bool)[:10].reshape(10, 10, 4)))) == {0, 255}
    planes = observations_of(box(-np.inf, np.inf, 8, 8, 5, dtype=np.float32))
    assert (planes.frame_shape, planes.frame_dtype) == ((5, 8, 8), np.dtype(np.float32))
    board = observations_of(box(-1, 1, 3, 3, dtype=np.int64))
    assert board.read(np.array([[-1, 0, 1]] * 3)).tolist() == [[[-1.0, 0.0, 1.0]] * 3]


def test_bytes_are_scaled_and_other_numbers_stay() -> None:
    memory = observations_of(box(0, 255, 4))
    np.testing.assert_allclose(memory.read(np.array([0, 51, 102, 255], np.uint8)), [0, 0.2, 0.4, 1])
    numbers = observations_of(box(-np.inf, np.inf, 2, 3, dtype=np.float64))
    assert numbers.read(np.arange(6.0).reshape(2, 3)).tolist() == [0, 1, 2, 3, 4, 5]


def test_states_become_one_of_their_number() -> None:
    taken = observations_of(spaces.Discrete(4, start=3))
    assert taken.read(np.int64(5)).tolist() == [0, 0, 1, 0]
    for other in (2, 7, 4.0, np.array([4])):
        with pytest.raises(ValueError, match=r"not an integer|its space has 3 to 6"):
            taken.read(other)


@pytest.mark.parametrize(
    ("space", "observation", "words"),
    [
        (box(-9, 9, 4, dtype=np.float32), 1.0, "has shape"),
        (box(-9, 9, 4, dtype=np.float32), np.ones(5), "has shape"),
        (box(-9, 9, 4, dtype=np.float32), [1, 2, None, 4], "not numbers"),
        (box(-9, 9, 4, dtype=np.float32), np.array([1, 2, np.nan, 4]), "not finite"),
        (box(-np.inf, np.inf, 1, dtype=np.float64), np.array([1e39]), "not finite in float32"),
        (box(0, 255, 4), np.full(4, 256), "outside"),
        (box(0, 255, 4), np.full(4, 0.5), "is float64"),
        (box(0, 1, 40, 40, dtype=np.float32), np.full((40, 40), 200.0), "outside"),
        (box(0, 1, 40, 40, dtype=np.float32), np.full((40, 40), np.inf), "not finite"),
    ],
)
def test_observations_of_another_kind_are_refused(
    space: spaces.Space[Any], observation: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        observations_of(space).read(observation)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Dict({"image": box(0, 255, 7, 7, 3)}), "minigrid.wrappers:ImgObsWrapper"),
        (spaces.Tuple([spaces.Discrete(2)]), "gymnasium.wrappers:FlattenObservation"),
        (spaces.Text(4), "--env-wrappers"),
        (box(-np.inf, np.inf, 84, 84, 3, dtype=np.float32), "lowest and one highest"),
        (box(0, 255, 84, 84, 50), "images are"),
        (box(0, 255, 40, 40, 40), "images are"),
        (box(0, 255, 5, 84, 84, 5), "images are"),
        (box(0, 255, 5, 6, 7, 8), "only images"),
    ],
)
def test_spaces_of_another_kind_are_refused_in_one_line(
    space: spaces.Space[Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        observations_of(space)
    assert "\n" not in str(error.value)
