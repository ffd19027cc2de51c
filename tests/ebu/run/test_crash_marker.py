"""A mark of what ended the process outlives it."""

import os
import signal
from pathlib import Path

import pytest

from ebu.run.crash_marker import CrashMarker


def end_in(mark: CrashMarker, frames: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Let a child end while this runs."""
    if not (child := os.fork()):
        with mark.set(frames):
            os.kill(os.getpid(), how)
    assert os.waitpid(child, 0)[1] & 0x7F == how


def test_starts_that_end_are_counted_by_frames_until_one_does_not(tmp_path: Path) -> None:
    mark = CrashMarker(tmp_path / "mark", most=9, near=8)
    for frames in (300, 104, 300, 307):
        end_in(mark, frames)
    with mark.set(104):
        assert mark.starts_ended(104) == 2
    assert [mark.starts_ended(at) for at in (104, 307, 314, 315)] == [0, 3, 3, 0]
    with pytest.raises(KeyboardInterrupt), mark.set(301):
        raise KeyboardInterrupt
    assert not mark.is_left()


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS])
def test_one_crash_is_enough(tmp_path: Path, how: signal.Signals) -> None:
    mark = CrashMarker(tmp_path / "mark", most=9)
    end_in(mark, 100)
    end_in(mark, 200, how)
    end_in(mark, 100)
    assert [mark.starts_ended(at) for at in (100, 200)] == [2, 9]


@pytest.mark.parametrize("damaged", [b"", b"\x00" * 9, b"[3]", b'{"a": 1}', b'{"3": "b"}', b"3"])
def test_a_damaged_mark_is_there_and_counts_nothing(tmp_path: Path, damaged: bytes) -> None:
    mark = CrashMarker(tmp_path / "mark")
    mark.path.write_bytes(damaged)
    assert mark.is_left()
    assert mark.starts_ended(3) == 0
    with mark.set(3):
        assert mark.starts_ended(3) == 1
    assert not mark.is_left()
