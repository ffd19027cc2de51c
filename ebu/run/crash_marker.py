"""Know at the next start what ended the process."""

import faulthandler
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ebu.errors import EbuError
from ebu.run.files import is_there, write_whole
from ebu.run.reading import parse_json, read_file


class CrashMarker:
    """A file that is there while code runs that can end the process, and after it did.

    It counts, by frames, how many starts in a row ended in that code. `most` of them are enough to
    give it up, and so is one crash, of which Python writes a trace into the file: a kill from
    outside leaves none. A GPU repeats a run only nearly: frame counts less than `near` apart are
    the same.
    """

    def __init__(self, path: Path, *, most: int = 1, near: int = 1) -> None:
        self.path = path
        self.most = most
        self._near = near

    def is_left(self) -> bool:
        """Whether a process ended in the code, at any frame count."""
        return is_there(self.path)

    def starts_ended(self, frames: int) -> int:
        """How many starts in a row ended in the code at this frame count; `most` after a crash."""
        return sum(count for at, count in self._counts().items() if self._same(at, frames))

    @contextmanager
    def set(self, frames: int) -> Iterator[None]:
        """Count this start as ended in the body at this frame count, until that is left.

        Raises `EbuError` or `OSError` where the disk fails.
        """
        counts = self._counts()
        others = {at: count for at, count in counts.items() if not self._same(at, frames)}
        ended = sum(counts.values()) - sum(others.values())
        self._write({**others, frames: ended + 1})
        try:
            with self.path.open("ab") as file, _traces_in(file):
                yield
        finally:
            with suppress(OSError, EbuError):
                self._write(others)

    def clear(self) -> None:
        """Forget everything."""
        self._write({})

    def _counts(self) -> dict[int, int]:
        """By frame count; a damaged file has none."""
        try:
            line, _, trace = read_file(self.path).partition(b"\n")
            counts = parse_json(line, dict[str, int])
            found = {int(at): count for at, count in counts.items()}
        except (OSError, ValueError):
            return {}
        if trace and found:
            # The code last begun is the last in the file.
            found[list(found)[-1]] = self.most
        return found

    def _same(self, frames: int, others: int) -> bool:
        return abs(frames - others) < self._near

    def _write(self, counts: dict[int, int]) -> None:
        if counts:
            write_whole(self.path, f"{json.dumps(counts)}\n".encode())
        else:
            self.path.unlink(missing_ok=True)


@contextmanager
def _traces_in(file: BinaryIO) -> Iterator[None]:
    """Let Python write there what runs when native code crashes (SIGSEGV, SIGABRT and the like)."""
    enabled = faulthandler.is_enabled()
    faulthandler.enable(file)
    try:
        yield
    finally:
        faulthandler.disable()
        if enabled:
            # Standard error may be closed, or none of the system's files.
            with suppress(OSError, ValueError, RuntimeError, AttributeError):
                faulthandler.enable()
