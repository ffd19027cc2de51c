"""Check what a checkpoint holds before it is taken up: types, shapes and ranges.

Digests find damage, not lies: a checkpoint of somebody else can hold anything. Every
`load_state_dict` compares what it is given with its own `state_dict` and raises `RefusedFileError`,
so that a run is refused when it is loaded and does not fail later.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ebu.run.reading import RefusedFileError, shorten

MOST_COUNTED = 10**15
"""No count of a run is larger, and a product with a few others still has 64 bits."""
REFUSED = (
    *(KeyError, TypeError, ValueError, OverflowError),
    *(AttributeError, IndexError, RuntimeError),
)
"""What loading a state that is not one's own may raise here, in torch and in numpy."""


def check_state(
    state: Any, like: Mapping[str, Any], *, longer: Iterable[str] = (), path: str = ""
) -> None:
    """Raise `RefusedFileError` unless `state` has the types and shapes of `like`.

    Whole numbers are counts, from 0 to `MOST_COUNTED`. What is None in `like` may be anything, and
    so may states of random generators, which numpy checks itself. Keys that `like` lacks are left
    alone. Raises `KeyError` for one that `state` lacks: earlier versions did.

    longer: names of tensors and arrays whose first axis may have any length.
    """
    if not isinstance(state, Mapping):
        raise RefusedFileError(f"{path[:-1] or 'the state'} is {shorten(state)}")
    for name, model in like.items():
        value, where = state[name], f"{path}{name}"
        if isinstance(model, Mapping):
            if "bit_generator" not in model:
                check_state(value, model, longer=longer, path=f"{where}/")
        elif isinstance(model, Tensor | np.ndarray):
            _check_array(value, model, where, any_length=name in longer)
        elif model is not None:
            check_number(value, type(model), where)


def check_number(value: Any, kind: type, what: str) -> None:
    """Raise `RefusedFileError` unless it is a bool, a string, a count or a float, as `kind` says.

    A float need not be finite.
    """
    if kind is int:
        fits = type(value) is int and 0 <= value <= MOST_COUNTED
    elif issubclass(kind, float):
        fits = isinstance(value, float) or (type(value) is int and abs(value) <= MOST_COUNTED)
    else:
        fits = type(value) is kind
    if not fits:
        raise RefusedFileError(f"{what} is {shorten(value)}")


def check_floats(value: Any, what: str) -> None:
    """Raise `RefusedFileError` unless it is a list of floats."""
    if not isinstance(value, list):
        raise RefusedFileError(f"{what} is {shorten(value)}")
    for number in value:
        check_number(number, float, what)


def check_rows(value: Any, columns: int, what: str) -> None:
    """Raise `RefusedFileError` unless it is a list of rows of `columns` floats."""
    if not isinstance(value, list):
        raise RefusedFileError(f"{what} is {shorten(value)}")
    for row in value:
        check_floats(row, what)
        if len(row) != columns:
            raise RefusedFileError(f"{what} holds {shorten(row)}")


def check_range(values: Tensor | np.ndarray, low: float, high: float, what: str) -> None:
    """Raise `RefusedFileError` unless all are from low to high; NaN is not."""
    array = values.numpy(force=True) if isinstance(values, Tensor) else values
    outside = ~((array >= low) & (array <= high))
    if outside.any():
        raise RefusedFileError(f"{what} holds {array[outside][0]}, not from {low:,} to {high:,}")


def require(fits: bool, what: str) -> None:
    """Raise `RefusedFileError` with these words unless it fits."""
    if not fits:
        raise RefusedFileError(what)


def _check_array(value: Any, model: Tensor | np.ndarray, what: str, *, any_length: bool) -> None:
    if not isinstance(value, Tensor if isinstance(model, Tensor) else np.ndarray):
        raise RefusedFileError(f"{what} is {shorten(value)}")
    shape, expected = tuple(value.shape), tuple(model.shape)
    if any_length and shape:
        expected = (shape[0], *expected[1:])
    if value.dtype != model.dtype or shape != expected:
        raise RefusedFileError(f"{what} is {shape} {_name(value)}, not {expected} {_name(model)}")


def _name(array: Tensor | np.ndarray) -> str:
    return str(array.dtype).removeprefix("torch.")
