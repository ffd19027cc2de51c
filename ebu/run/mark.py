"""Know at the next start what ended the process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ebu.errors import EbuError
from ebu.run.files import is_there, write_whole
from ebu.run.reading import check_fits, read_json


class Mark:
    """A file that is there while code runs that can end the process, and after it did.

    It counts, by frames, how many starts in a row ended in that code. A GPU repeats a run only
    nearly: frame counts less than `near` apart are the same.
    """

    def __init__(self, path: Path, near: int = 1) -> None:
        self.path = path
        self._near = near

    def is_left(self) -> bool:
        """Whether a process ended in the code, at any frame count."""
        return is_there(self.path)

    def starts_ended(self, frames: int) -> int:
        """How many starts in a row ended in the code at this frame count."""
        return sum(count for at, count in self._counts().items() if self._same(at, frames))

    @contextmanager
    def set(self, frames: int) -> Iterator[None]:
        """Count this start as ended in the body at this frame count, until that is left.

        Raises `EbuError` where the disk fails.
        """
        others = {at: count for at, count in self._counts().items() if not self._same(at, frames)}
        self._write({**others, frames: self.starts_ended(frames) + 1})
        try:
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
            counts = read_json(self.path)
            check_fits(counts, dict[str, int])
            return {int(at): count for at, count in counts.items()}
        except (OSError, ValueError):
            return {}

    def _same(self, frames: int, others: int) -> bool:
        return abs(frames - others) < self._near

    def _write(self, counts: dict[int, int]) -> None:
        if counts:
            write_whole(self.path, json.dumps(counts).encode())
        else:
            self.path.unlink(missing_ok=True)
