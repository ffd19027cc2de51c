"""Read files that somebody else may have written: no links out, no pipes, bounded, typed.

A run directory is data. Whatever is in it, reading it ends in a value of the expected type or in
one line: every loader of run directories, checkpoints, students, states, studies and reports reads
through this module.
"""

import json
import math
import os
import stat
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 64 << 20
"""A file of JSON is at most this long."""
MOST_LOG_BYTES = 1 << 30
"""A log, such as metrics.jsonl, is at most this long."""
MOST_NESTED = 64
"""Lists and objects in JSON are nested at most this deep."""
LARGEST_FLOAT = 1e100
"""No number that is measured is as large, and its square is still finite."""
MOST_ENTRIES = 200_000
"""A run directory holds at most this many files."""


class RefusedFileError(ValueError):
    """The file is not what it should be; the message says why, without its path."""


def open_file(path: Path, most: int | None = None) -> BinaryIO:
    """Open a regular file of at most `most` bytes to read.

    Raises `OSError` where there is none or it cannot be read, `RefusedFileError` for a link out of
    its directory, for pipes, devices and directories, and for a file that is too long.
    """
    _refuse_link_out(path, path.parent)
    # Not opened before it is known to be a file: a pipe has somebody at its other end.
    _check_status(os.stat(path), most)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _check_status(os.fstat(file.fileno()), most)
    except RefusedFileError:
        file.close()
        raise
    return file


def _check_status(status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedFileError("it is no regular file")
    if most is not None and status.st_size > most:
        raise RefusedFileError(f"it has {status.st_size:,} bytes, and at most {most:,} are read")


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file; raises as `open_file`."""
    with open_file(path, most) as file:
        return file.read()


def read_json(path: Path, kind: Any = Any, *, finite: bool = True) -> Any:
    """The value in a file of JSON, of this type; raises as `open_file` and `parse_json`."""
    return parse_json(read_file(path), kind, finite=finite)


def parse_json(text: bytes | str, kind: Any = Any, *, finite: bool = True) -> Any:
    """The value in a text of JSON, of this type: see `check_fits`.

    Raises `RefusedFileError` for what is no JSON, nested too deep or of another type, and, if
    `finite`, for numbers that are not.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise RefusedFileError("it is nested too deep") from None
    except ValueError as error:
        raise RefusedFileError(f"no JSON: {error}") from None
    level: list[Any] = [[value]]
    for _ in range(MOST_NESTED + 1):
        inner: list[Any] = []
        for node in level:
            for each in node.values() if isinstance(node, dict) else node:
                if isinstance(each, dict | list):
                    inner.append(each)
                elif finite and isinstance(each, float) and not math.isfinite(each):
                    raise RefusedFileError("a number in it is not finite")
        level = inner
        if not level:
            check_fits(value, kind)
            return value
    raise RefusedFileError("it is nested too deep")


def check_fits(value: Any, kind: Any, what: str = "it") -> None:
    """Raise `RefusedFileError` unless a JSON value is of this type.

    `kind` may be built of int (64 bits), float (finite, at most `LARGEST_FLOAT`), bool, str, None,
    list, dict, unions, literals and typed dictionaries, of which keys that are not named may be
    anything.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind):
        fits = isinstance(value, dict)
        missing = kind.__required_keys__ - value.keys() if fits else ()
        if missing:
            raise RefusedFileError(f"{what} lacks {', '.join(sorted(missing))}")
        if fits:
            for name, inner in typing.get_type_hints(kind).items():
                if name in value:
                    check_fits(value[name], inner, name)
    elif origin in (types.UnionType, typing.Union):
        fits = any(_fits(value, each) for each in arguments)
    elif origin is typing.Literal:
        fits = isinstance(value, str) and value in arguments
    elif origin is list:
        fits = isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    elif origin in (dict, Mapping) or kind is dict:
        inner = arguments[1] if arguments else Any
        fits = isinstance(value, dict) and all(_fits(each, inner) for each in value.values())
    elif kind is int:
        fits = type(value) is int and abs(value) < 2**63
    elif kind is float:
        fits = _fits(value, int) or (type(value) is float and abs(value) < LARGEST_FLOAT)
    else:
        fits = kind is Any or value is kind or (isinstance(kind, type) and type(value) is kind)
    if not fits:
        raise RefusedFileError(f"{what} is {shorten(value)}")


def _fits(value: Any, kind: Any) -> bool:
    try:
        check_fits(value, kind)
    except RefusedFileError:
        return False
    return True


def shorten(value: Any) -> str:
    """A value for a message, in one line of at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}..."


def check_directory(directory: Path) -> None:
    """Look through a directory that will be read and written.

    Raises `RefusedFileError` for links out of it, pipes, devices and sockets, and `OSError` where
    it cannot be read.
    """
    entries = 0
    waiting = [directory]
    while waiting:
        try:
            found = list(os.scandir(waiting.pop()))
        except FileNotFoundError:
            # A checkpoint that has just been replaced.
            continue
        entries += len(found)
        if entries > MOST_ENTRIES:
            raise RefusedFileError(f"it holds more than {MOST_ENTRIES:,} files")
        for entry in found:
            path = Path(entry.path)
            if entry.is_symlink():
                _refuse_link_out(path, directory)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(path):
                raise RefusedFileError(f"{path.relative_to(directory)} is no regular file")


def _refuse_link_out(path: Path, directory: Path) -> None:
    if not os.path.islink(path):
        return
    real, root = os.path.realpath(path), os.path.realpath(directory)
    if os.path.commonpath([real, root]) != root:
        where = os.path.relpath(path, directory)
        raise RefusedFileError(f"{where} is a link out of the directory: remove the link")
