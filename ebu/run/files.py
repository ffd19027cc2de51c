"""Crash-safe writes: fsync files and their directories."""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ebu.errors import EbuError

with suppress(ImportError):  # missing on Windows
    import fcntl


def as_json(record: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """A record as its file holds it; `default` as of `json.dumps`.

    Raises `ValueError` for a number that is not finite.
    """
    return (json.dumps(record, indent=1, allow_nan=False, default=default) + "\n").encode()


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's names, are on the disk.

    Raises `OSError` where the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_there(path: Path) -> bool:
    """Whether anything has this name, a link that leads nowhere too.

    Raises `OSError` where the disk cannot tell: `os.path.exists` would say no.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise
    return True


def open_to_write(path: Path, flags: int) -> int:
    """Open a regular file to write, at its descriptor; never what a link of this name points to.

    Raises `OSError`, for links, pipes and devices too.
    """
    # A pipe without a reader fails at once instead of blocking.
    flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    _refuse_link(path)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def check_place(path: Path) -> None:
    """Raise `OSError` unless a file can be at this path: nothing is there, or a regular file is.

    A new file would take the place of a link, a pipe or a device of this name.
    """
    _refuse_link(path)
    if is_there(path) and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, which is not followed", str(path))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and its directory where there is none.

    Several processes may write it at once: one waits for the other, and the last one's content
    stays. Raises `EbuError`, one line, where the disk is full or fails, and for a link, a pipe or a
    device of this name; what was there is then as it was.
    """
    draft = path.with_name(f".{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_place(path)
        with _open_draft(draft) as file:
            try:
                file.write(content)
                file.flush()
                sync(draft)
                draft.replace(path)
                sync(path.parent)
            except OSError:
                with suppress(OSError):
                    draft.unlink()
                raise


def _open_draft(draft: Path) -> IO[bytes]:
    """Open the draft of a file, empty and locked; one that a killed process left is used again.

    A name for each process would leave a file for each that is killed.
    """
    while True:
        file = os.fdopen(open_to_write(draft, os.O_CREAT), "wb")
        # Where a file system has no locks, processes that write the same file are not kept apart.
        with suppress(OSError, NameError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # The process that had the lock may have renamed or removed what was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(draft)):
                file.truncate()
                return file
        file.close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` while this file is written into an `EbuError` of one line."""
    try:
        yield
    except OSError as error:
        raise EbuError(
            f"cannot write {path}: {error.strerror or error}; free space or make it writable, and "
            "run the same command again"
        ) from error
