"""What an observation is taken for: an image, a grid, or numbers; docs/environments.md."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image

FRAME_SIDE = 84
"""Height and width of the grey frames that images become."""
SMALLEST_SIDE = 36
"""Side of the smallest image that three convolutions leave a pixel of; grids are smaller."""
STACK = 4
"""Newest images that make a state, where the environment stacks none."""


@dataclass(frozen=True)
class Observations:
    """How the observations of a space become frames.

    | field | meaning |
    | --- | --- |
    | text | what they are taken for, in one line |
    | frame_shape, frame_dtype | (84, 84) uint8 of images, (C, H, W) of grids, (D,) of numbers |
    | stack | newest frames that make a state |
    | read | a frame from an observation; raises ValueError, in a few words, for others |
    | picture | (H, W, 3) uint8 from an observation; None where it is no image |
    """

    text: str
    frame_shape: tuple[int, ...]
    frame_dtype: np.dtype[Any]
    stack: int
    read: Callable[[Any], np.ndarray]
    picture: Callable[[Any], np.ndarray] | None = None


def observations_of(space: spaces.Space[Any]) -> Observations:
    """What the observations of a space are taken for.

    Raises ValueError, in one line, for what is neither image, grid nor numbers.
    """
    if isinstance(space, spaces.Discrete):
        return _one_hot(space)
    if isinstance(space, spaces.MultiBinary):
        return _numbers(spaces.Box(0, 1, space.shape, np.int8))
    if not isinstance(space, spaces.Space):
        raise ValueError(f"has the observation_space {abbreviate_value(space)}, which is no space")
    if not isinstance(space, spaces.Box):
        raise ValueError(f"has observations {abbreviate(space)}, {_wrapper_for(space)}")
    shape = space.shape
    if 0 in shape:
        raise ValueError(f"has observations {abbreviate(space)}, which are empty")
    sides = sum(length >= SMALLEST_SIDE for length in shape)
    if len(shape) > 1 and sides >= 2:
        return _images(space)
    if len(shape) <= 2 and not (len(shape) == 2 and _is_integer(space) and min(shape) > 1):
        return _numbers(space)
    if len(shape) > 3:
        raise ValueError(f"has observations {abbreviate(space)}: of four axes and more only images")
    return _numbers(space) if 1 in _grid_shape(shape)[1:] else _grid(space)


def channel_axis(shape: tuple[int, ...]) -> int:
    """0 or 2, the axis of the channels of (C, H, W) or (H, W, C).

    The one that leaves a square; otherwise the shorter, of equals the last.
    """
    first_is_square, last_is_square = shape[1] == shape[2], shape[0] == shape[1]
    if first_is_square != last_is_square:
        return 0 if first_is_square else 2
    return 0 if shape[0] < shape[2] else 2


def grey_frame(image: np.ndarray) -> np.ndarray:
    """Convert (H, W), (H, W, 1) or (H, W, 3) uint8 to luma, averaged by area to (84, 84) uint8."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.shape == (FRAME_SIDE, FRAME_SIDE):
        return image
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    return np.asarray(grey.resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.BOX))


def abbreviate(space: spaces.Space[Any]) -> str:
    """A space on one line of at most 80 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _checker(space: spaces.Box) -> Callable[[Any], np.ndarray]:
    """A function that reads observations as arrays and checks them against the space.

    They must have its shape and finite numbers; of an integer space integers, of bytes in bounds.
    """
    shape, integer = space.shape, _is_integer(space)
    bounded = _is_bytes(space)
    whole_range = bounded and bool(np.all(space.low == 0) and np.all(space.high == 255))

    def read(observation: Any) -> np.ndarray:
        values = np.asarray(observation)
        if values.dtype.kind not in "biuf":
            raise ValueError(f"is {type(observation).__name__} {values.dtype}, not numbers")
        if values.shape != shape:
            raise ValueError(f"has shape {values.shape}, its space {shape}")
        if values.dtype.kind == "f":
            if integer:
                raise ValueError(f"is {values.dtype}, its space {space.dtype}")
            if not np.isfinite(values).all():
                raise ValueError("is not finite")
        elif (
            bounded
            and not (whole_range and values.dtype == np.uint8)
            and not ((values >= space.low) & (values <= space.high)).all()
        ):
            raise ValueError("lies outside the bounds of its space")
        return values

    return read


def _one_hot(space: spaces.Discrete) -> Observations:
    size, start = int(space.n), int(space.start)

    def read(observation: Any) -> np.ndarray:
        value = np.asarray(observation)
        if value.shape != () or value.dtype.kind not in "iu":
            raise ValueError(f"is {abbreviate_value(observation)}, not an integer")
        if not 0 <= int(value) - start < size:
            raise ValueError(f"is {value}, its space has {start} to {start + size - 1}")
        frame = np.zeros(size, np.float32)
        frame[int(value) - start] = 1
        return frame

    text = f"one of {size} states: {size} numbers, of which one is 1"
    return Observations(text, (size,), np.dtype(np.float32), 1, read)


def _numbers(space: spaces.Box) -> Observations:
    size = math.prod(space.shape)
    check, scale = _checker(space), np.float32(1)
    text = f"{size} numbers"
    if space.dtype == np.uint8 or (np.all(space.low == 0) and np.all(space.high == 255)):
        scale = np.float32(1 / 255)
        text = f"{size} bytes, scaled to [0, 1]"
    largest = float(np.finfo(np.float32).max)

    def read(observation: Any) -> np.ndarray:
        values = check(observation)
        if values.dtype == np.float64 and (np.abs(values) > largest).any():
            raise ValueError("is not finite in float32")
        frame = values.astype(np.float32).reshape(-1)
        return frame * scale if scale != 1 else frame

    return Observations(text, (size,), np.dtype(np.float32), 1, read)


def _grid(space: spaces.Box) -> Observations:
    flags = _is_integer(space) and bool(np.all(space.low == 0) and np.all(space.high == 1))
    axis = channel_axis(space.shape) if len(space.shape) == 3 else None
    check, dtype = _checker(space), np.dtype(np.uint8 if _is_bytes(space) else np.float32)

    def read(observation: Any) -> np.ndarray:
        values = check(observation)
        cells = values[None] if axis is None else np.moveaxis(values, axis, 0)
        cells = np.ascontiguousarray(cells, dtype)
        return cells * np.uint8(255) if flags else cells

    shape = _grid_shape(space.shape)
    place = {None: "", 0: " first", 2: " last"}[axis]
    cells = "flags" if flags else "bytes" if dtype == np.uint8 else "numbers"
    text = f"a grid of {shape[1]}×{shape[2]} cells, {shape[0]} channels{place}, {cells}"
    picture = None
    if cells != "numbers" and shape[0] in (1, 3):

        def picture(observation: Any) -> np.ndarray:
            pixels = np.moveaxis(read(observation), 0, 2)
            return np.repeat(pixels, 3 // shape[0], axis=2)

    return Observations(text, shape, dtype, 1, read, picture)


def _images(space: spaces.Box) -> Observations:
    shape = space.shape
    low, high = float(space.low.flat[0]), float(space.high.flat[0])
    same = bool(np.all(space.low == low) and np.all(space.high == high))
    if not (same and 0 < high - low < math.inf):
        raise ValueError(
            f"has observations {abbreviate(space)}: an image has one lowest and one highest value, "
            "such as 0 and 255, or 0 and 1; declare them, or flatten it with --env-wrappers "
            "gymnasium.wrappers:FlattenObservation"
        )
    newest, channels, stack, layout = _image_layout(space)
    is_bytes = space.dtype == np.uint8 and (low, high) == (0, 255)
    check, scale = _checker(space), 255 / (high - low)

    def image(observation: Any) -> np.ndarray:
        values = newest(check(observation))
        if is_bytes:
            return values.astype(np.uint8, copy=False)
        slack = 1e-3 * (high - low)
        if values.min() < low - slack or values.max() > high + slack:
            raise ValueError(f"lies outside its bounds, {low:g} and {high:g}")
        return np.rint(np.clip((values - low) * scale, 0, 255)).astype(np.uint8)

    def read(observation: Any) -> np.ndarray:
        return grey_frame(image(observation))

    def picture(observation: Any) -> np.ndarray:
        return np.repeat(image(observation), 3 // channels, axis=2)

    height, width = newest(np.empty(shape, bool)).shape[:2]
    scaled = "bytes" if is_bytes else f"{low:g} to {high:g} scaled to bytes"
    taken = (FRAME_SIDE, FRAME_SIDE)
    text = (
        f"images of {height}×{width}, {layout}, {scaled}: grey frames of "
        f"{FRAME_SIDE}×{FRAME_SIDE}, of which {stack} are a state"
    )
    return Observations(text, taken, np.dtype(np.uint8), stack, read, picture)


def _image_layout(
    space: spaces.Box,
) -> tuple[Callable[[np.ndarray], np.ndarray], int, int, str]:
    """How to take the newest image (H, W, C) from an observation; C; images in a state; words."""
    shape = space.shape
    refusal = ValueError(
        f"has observations {abbreviate(space)}: images are (H, W), with channels first or last, "
        "and in front of them a stack; for other ones write a wrapper, --env-wrappers module:Name"
    )
    if len(shape) == 2:
        return (lambda values: values[:, :, None]), 1, STACK, "grey"
    if len(shape) == 4:
        axis = channel_axis(shape[1:])
        channels = shape[1 + axis]
        if channels not in (1, 3) or shape[0] >= SMALLEST_SIDE:
            raise refusal
        kind = "grey" if channels == 1 else "colour"
        layout = f"{kind}, stacks of {shape[0]}"
        return (lambda values: np.moveaxis(values[-1], axis, 2)), channels, shape[0], layout
    axis = channel_axis(shape) if len(shape) == 3 else -1
    if axis < 0 or min(shape[:axis] + shape[axis + 1 :]) < SMALLEST_SIDE <= shape[axis]:
        raise refusal
    channels = 3 if shape[axis] % 3 == 0 else 1
    images = shape[axis] // channels
    if shape[axis] >= SMALLEST_SIDE:
        raise refusal
    layout = ("grey" if channels == 1 else "colour") + f", channels {'last' if axis else 'first'}"
    if images > 1:
        layout += f", stacks of {images}"
    return (
        lambda values: np.moveaxis(values, axis, 2)[:, :, -channels:],
        channels,
        images if images > 1 else STACK,
        layout,
    )


def abbreviate_value(value: Any) -> str:
    """A value on one line of at most 40 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def _grid_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of a grid's observations, (H, W), (H, W, C) or (C, H, W)."""
    if len(shape) == 2:
        return (1, *shape)
    axis = channel_axis(shape)
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def _is_bytes(space: spaces.Box) -> bool:
    """Whether all values are integers from 0 to 255."""
    return _is_integer(space) and bool(np.all(space.low >= 0) and np.all(space.high <= 255))


def _is_integer(space: spaces.Space[Any]) -> bool:
    return space.dtype is not None and np.dtype(space.dtype).kind in "biu"


def _wrapper_for(space: spaces.Space[Any]) -> str:
    entries = list(space.spaces) if isinstance(space, spaces.Dict) else []
    if "image" in entries:
        return (
            "of which an agent sees one: take its image with --env-wrappers "
            "minigrid.wrappers:ImgObsWrapper in a MiniGrid world, or with a wrapper of your own"
        )
    return (
        "not an image, a grid, numbers or a state: flatten them with --env-wrappers "
        "gymnasium.wrappers:FlattenObservation, or write a wrapper, --env-wrappers module:Name"
    )
