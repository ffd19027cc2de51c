"""Settings as dataclasses: ranges and choices written next to their types, and names of flags."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from ebu.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a number: `Annotated[int, Bounds(least=1)]`. NaN lies outside.

    | field | meaning |
    | --- | --- |
    | least, most | lowest and highest value |
    | above | every value is larger than this |
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def check(self, flag: str, value: float) -> None:
        """Raise `UsageError` for a value outside of the range."""
        low, high = self.least, self.most
        if self.above is not None and not value > self.above:
            limit = "positive" if self.above == 0 else f"above {self.above:,}"
        elif low is not None and not value >= low:
            limit = "positive" if low == 1 else f"at least {low:,}"
        elif high is not None and not value <= high:
            limit = f"at most {high:,}"
        else:
            return
        if (low, high) == (0, 1):
            limit = "between 0 and 1"
        raise UsageError(f"{flag} must be {limit}, not {value}")


class OneOf:
    """The choices of a setting: `Annotated[str, OneOf("cpu", "cuda")]`."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def check(self, flag: str, value: str) -> None:
        """Raise `UsageError` for another value."""
        one_of(flag, value, self.names)


Positive = Annotated[int, Bounds(least=1)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[int, Bounds(least=0)]
NotNegativeFloat = Annotated[float, Bounds(least=0)]
Share = Annotated[float, Bounds(least=0, most=1)]
Threads = Annotated[int, Bounds(least=0, most=10_000)]
Device = Annotated[str, OneOf("auto", "cpu", "cuda")]


def check_settings(config: Any) -> None:
    """Raise `UsageError`, with the flag, for a setting of a dataclass outside of its range."""
    annotations = typing.get_type_hints(type(config), include_extras=True)
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check_settings(value)
        elif value is not None:
            for each in value if isinstance(value, tuple) else (value,):
                for limits in _limits(annotations[entry.name]):
                    limits.check(f"--{entry.name.replace('_', '-')}", each)


def _limits(annotation: Any) -> Iterator[Bounds | OneOf]:
    """What a type is annotated with; of an optional one or a tuple, what its parts are."""
    yield from (
        found
        for found in getattr(annotation, "__metadata__", ())
        if isinstance(found, Bounds | OneOf)
    )
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple):
        for part in typing.get_args(annotation):
            yield from _limits(part)


def read_float(text: str) -> float:
    """As `float`, without the digits of other scripts. Raises `ValueError`."""
    return float(text.encode("ascii"))


def one_of(flag: str, value: str, known: Iterable[str]) -> None:
    """Raise `UsageError`, with all choices and the nearest, unless `value` is one of them."""
    names = list(known)
    if value not in names:
        raise UsageError(
            f"{flag} {value}: choose one of {', '.join(names)}{did_you_mean(value, names)}"
        )


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The known name that is nearest, as the end of a message; nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def flat(config: Any) -> dict[str, Any]:
    """Every setting by the name of its flag."""
    settings: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            settings |= flat(value)
        else:
            settings[entry.name] = str(value) if isinstance(value, Path) else value
    return settings


def switches(config: Any) -> Iterator[str]:
    """Names of the settings of a dataclass, or of an instance, that are on or off."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name, entry.type)
        if dataclasses.is_dataclass(value):
            yield from switches(value)
        elif entry.type is bool:
            yield entry.name
