"""Progress on a terminal, in a file, and after standard error was closed."""

import io
import os
import pty
import re
import select
import sys
import time
from collections.abc import Callable

import pytest

from ebu.run.progress import MANY, Progress, StatusLine, progress_bar, say, starting


class Screen(io.StringIO):
    """Standard error: a terminal or not."""

    encoding = "utf-8"

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[str]:
        return self.getvalue().split("\n")[:-1]


Show = Callable[[bool], Screen]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Make standard error a terminal or a file, at second 1000 of a clock that `play` moves."""

    def make(terminal: bool) -> Screen:
        monkeypatch.setattr(sys, "stderr", Screen(terminal))
        return sys.stderr  # type: ignore[return-value]

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    Clock.now = 1000.0
    return make


class Clock:
    now = 1000.0


def play(progress: Progress, frames: range, seconds: float) -> None:
    for now in frames:
        Clock.now += seconds
        progress.update(now, episode_return=12.34, epsilon=0.5)


def test_plain_lines_without_a_terminal(show: Show) -> None:
    screen = show(False)
    progress = Progress(100_000)
    play(progress, range(25, 10_001, 25), seconds=0.25)  # 100 s
    say("an evaluation")
    progress.close()
    assert screen.lines() == [
        "3,000/100k frames, 100/s, 16:10 left, return 12.3, ε 0.5",
        "6,000/100k frames, 100/s, 15:40 left, return 12.3, ε 0.5",
        "9,000/100k frames, 100/s, 15:10 left, return 12.3, ε 0.5",
        "an evaluation",
        "10.0k/100k frames, 100/s, 15:00 left, return 12.3, ε 0.5",
    ]


def test_what_is_not_known_yet_is_left_out(show: Show) -> None:
    screen = show(True)
    Progress(51_000, initial=50_000).close()
    assert "ε" not in screen.getvalue()


@pytest.mark.parametrize(("pause", "rates"), [(600, [100, 100, 100]), (8, [100, 74, 100])])
def test_the_rate_is_that_of_training(show: Show, pause: int, rates: list[int]) -> None:
    """A long pause does not count; a short one for thirty seconds."""
    screen = show(False)
    progress = Progress(100_000)
    play(progress, range(25, 4_001, 25), seconds=0.25)
    Clock.now += pause
    play(progress, range(4_025, 9_001, 25), seconds=0.25)
    assert [line.split(", ")[1] for line in screen.lines()] == [f"{rate}/s" for rate in rates]


def test_what_was_done_before_is_not_in_the_rate(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show(False)
    monkeypatch.setattr("tqdm.std.time", lambda: Clock.now)
    with progress_bar("student: updates", 8_000, "updates", initial=4_000) as progress:
        Clock.now += 100
        progress(5_000)
    assert " 5000/8000 " in screen.getvalue()
    assert "10.00 updates/s" in screen.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_one_live_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, show: Show, columns: int
) -> None:
    screen = show(True)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 24))
    progress = Progress(51_000, initial=50_000)
    # A run may end a little past its total.
    play(progress, range(50_010, 51_011, 10), seconds=0.1)
    say("an evaluation")
    progress.close()
    assert screen.lines()[0].endswith("\ran evaluation")
    live = screen.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, live)) <= columns
    assert live[-2].startswith("100% |")
    if columns >= 80:
        assert live[-2].endswith("| 51.0k/51.0k frames, 100/s, 00:00 left, return 12.3, ε 0.5")
    assert screen.getvalue().count("\n") == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_work_continues_after_standard_error_was_closed(
    monkeypatch: pytest.MonkeyPatch, show: Show, terminal: bool
) -> None:
    screen = show(terminal)
    progress = Progress(100_000)
    play(progress, range(10, 1_000, 10), seconds=0.1)

    def broken(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(screen, "write", broken)
    play(progress, range(1_000, 10_000, 10), seconds=0.1)
    say("an evaluation")
    progress.close()


def test_the_start_of_many_is_reported_until_it_ends(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebu.run.progress.STARTING_SECONDS", 0.05)
    reported = ""
    with starting(MANY, "emulators"):
        while reported.count("\n") < 2:
            # Holds the interpreter's lock, as the call that makes emulators does.
            sum(range(1_000_000))
            reported += capfd.readouterr().err
    capfd.readouterr()
    for line in reported.splitlines():
        assert re.fullmatch(rf"starting {MANY} emulators: \d+ s so far", line)
    with starting(MANY - 1, "emulators"):
        time.sleep(0.5)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("closed", [None, io.StringIO()])
def test_many_start_where_nothing_can_be_reported(
    closed: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", closed)
    with starting(MANY, "emulators"):
        pass


def test_bars_are_seen_on_a_terminal_of_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    assert os.get_terminal_size(writer).columns == 0
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        line = StatusLine(total=100)
        line.show(50, "half of it")
        line.close()
        with progress_bar("games", 4, "games") as update:
            update(1)
        # A terminal hands out what is written in pieces.
        shown = b""
        while b"games:" not in shown and select.select([reader], [], [], 5)[0]:
            shown += os.read(reader, 100_000)
    os.close(reader)
    assert b" 50% |" in shown
    assert b"half of it" in shown
    assert b"games:" in shown
