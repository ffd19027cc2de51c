"""Standard streams that cost no result: closed, full, piped into head, of an ASCII terminal."""

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Any

_IN_ASCII = {
    **dict(zip("±×–—─│█’", ("+-", "x", *"---|#'"), strict=True)),
    **dict(zip("εβγτ…", ("eps", "beta", "gamma", "tau", "..."), strict=True)),
    **dict.fromkeys("╭╮╰╯├┤", "+"),
}


class _Patient(io.RawIOBase):
    """A descriptor to write to; what it does not take is dropped, and the first error kept."""

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self.error = error
        return len(data)


def prepare_streams() -> None:
    """Have standard output and error take everything, and never raise.

    What an encoding lacks is written as it is in ASCII, or escaped: names of files may be of any
    bytes.
    """
    codecs.register_error("ascii", _in_ascii)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else a file that is opened later gets this number, and messages are written into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name)
        # Others have been put there by whoever imports the command.
        if stream is None or stream is getattr(sys, f"__{name}__"):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            patient = io.TextIOWrapper(
                io.BufferedWriter(_Patient(descriptor)),
                getattr(stream, "encoding", "utf-8"),
                errors="ascii",
                line_buffering=name == "stderr" or os.isatty(descriptor),
            )
            setattr(sys, name, patient)


def output_error() -> OSError | None:
    """Why standard output has not taken everything; None if it has, or its reader has left."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Patient) else None
    return None if error is None or error.errno == errno.EPIPE else error


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    if letter in _IN_ASCII:
        return _IN_ASCII[letter], error.start + 1
    escaped, end = codecs.backslashreplace_errors(error)
    return escaped, end
