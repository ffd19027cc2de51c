"""Progress on a terminal, in a file, and after standard error was closed."""

import io
import sys
import time

import pytest

from ebu.run.progress import Progress


class Screen(io.StringIO):
    """Standard error: a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def lines(self) -> list[str]:
        return self.getvalue().split("\n")[:-1]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def play(progress: Progress, clock: Clock, frames: range, seconds: float) -> None:
    for now in frames:
        clock.now += seconds
        progress.update(now, episode_return=12.34, epsilon=0.5)


def test_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(100_000)
    play(progress, clock, range(25, 10_001, 25), seconds=0.25)  # 100 s
    progress.write("an evaluation")
    progress.close()
    assert screen.lines() == [
        "3,000/100k frames, 100/s, 16:10 left, return 12.3, ε 0.5",
        "6,000/100k frames, 100/s, 15:40 left, return 12.3, ε 0.5",
        "9,000/100k frames, 100/s, 15:10 left, return 12.3, ε 0.5",
        "an evaluation",
        "10.0k/100k frames, 100/s, 15:00 left, return 12.3, ε 0.5",
    ]


@pytest.mark.parametrize(("pause", "rates"), [(600, [100, 100, 100]), (8, [100, 74, 100])])
def test_the_rate_is_that_of_training(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, pause: int, rates: list[int]
) -> None:
    """A long pause does not count; a short one for thirty seconds."""
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(100_000)
    play(progress, clock, range(25, 4_001, 25), seconds=0.25)
    clock.now += pause
    play(progress, clock, range(4_025, 9_001, 25), seconds=0.25)
    assert [line.split(", ")[1] for line in screen.lines()] == [f"{rate}/s" for rate in rates]
    progress.close()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_one_live_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, columns: int
) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 24))
    progress = Progress(100_000, initial=50_000)
    play(progress, clock, range(50_010, 51_001, 10), seconds=0.1)
    progress.write("an evaluation")
    progress.close()
    assert screen.lines()[0].endswith("\ran evaluation")
    live = screen.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, live)) <= columns
    last = live[-2]
    assert last.startswith(" 51% |")
    if columns >= 80:
        assert last.endswith("| 51.0k/100k frames, 100/s, 08:10 left, return 12.3, ε 0.5")
    assert screen.getvalue().count("\n") == 2


def test_a_run_that_ends_a_little_past_its_total_is_whole(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(10_000)
    play(progress, clock, range(32, 10_017, 32), seconds=0.1)
    progress.close()
    assert screen.getvalue().replace("\n", "\r").split("\r")[-2].startswith("100% |")


@pytest.mark.parametrize("terminal", [False, True])
def test_standard_error_was_closed(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, terminal: bool
) -> None:
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(100_000)
    play(progress, clock, range(10, 1_000, 10), seconds=0.1)

    def broken(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(screen, "write", broken)
    play(progress, clock, range(1_000, 10_000, 10), seconds=0.1)
    progress.write("an evaluation")
    progress.close()
