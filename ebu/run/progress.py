"""Progress on standard error: live on a terminal, elsewhere a plain line now and then."""

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

LIVE_SECONDS, PLAIN_SECONDS = 0.5, 30.0
"""Between two lines: on a terminal, and elsewhere."""
MANY, STARTING_SECONDS = 16, 10.0
"""Environments whose start is reported on, and the time between two lines on it."""
# The end of its input ends it: with the program, however that ends.
_REPORT = """
import select, sys, time
what, every, begun = sys.argv[1], float(sys.argv[2]), time.monotonic()
over_the_bar = "\\r\\033[K" if sys.stdout.isatty() else ""
while not select.select([sys.stdin], [], [], every)[0]:
    print(f"{over_the_bar}{what}: {time.monotonic() - begun:.0f} s so far", flush=True)
"""


def _size() -> dict[str, Any]:
    """The size of a bar as tqdm takes it: that of the terminal, as it changes.

    One without a window (of a container, of `script`) has 0 columns, where tqdm shows nothing.
    """
    with contextlib.suppress(OSError, ValueError):
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


@contextlib.contextmanager
def progress_bar(
    what: str, total: int, unit: str, *, initial: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; the function given is called with the number so far.

    initial: done before, and of no account in the rate.
    """
    every = LIVE_SECONDS if sys.stderr.isatty() else PLAIN_SECONDS
    with tqdm(
        desc=what or None,
        total=total,
        initial=initial,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=every,
        maxinterval=every,
        **_size(),
    ) as bar:
        yield lambda done: bar.update(done - bar.n)


def say(line: str) -> None:
    """Print a line on standard error; on a terminal it appears above the bars."""
    # stderr was closed: keep working.
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()


@contextlib.contextmanager
def starting(count: int, what: str) -> Iterator[None]:
    """Report every few seconds that these are still starting, if they are many.

    A child process does: the emulators are made in one call that holds the interpreter's lock.
    """
    child = None
    if count >= MANY:
        # Standard error may be closed or no file: nothing is reported then.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            child = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _REPORT),
                    *(f"starting {count} {what}", str(STARTING_SECONDS)),
                ],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno(),
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the program alone.
                start_new_session=True,
            )
    try:
        yield
    finally:
        if child is not None:
            child.kill()
            child.communicate()


class StatusLine:
    """A line on standard error: live on a terminal, elsewhere printed now and then."""

    def __init__(
        self,
        total: int,
        initial: int = 0,
        *,
        live_seconds: float = LIVE_SECONDS,
        plain_seconds: float = PLAIN_SECONDS,
        leave: bool = True,
    ) -> None:
        """`leave`: whether the live line stays when it is closed."""
        self.is_live = sys.stderr is not None and sys.stderr.isatty()
        self._seconds = live_seconds if self.is_live else plain_seconds
        self._total = total
        self._shown_at = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if self.is_live:
            self._bar = tqdm(
                total=total,
                initial=initial,
                bar_format="{percentage:3.0f}% |{bar}| {desc}",
                file=sys.stderr,
                leave=leave,
                **_size(),
            )

    def is_due(self) -> bool:
        """Whether it is time to show it again."""
        return time.monotonic() - self._shown_at >= self._seconds

    def show(self, done: int, text: str) -> None:
        """Show that `done` of all is done, and a text."""
        self._shown_at = time.monotonic()
        if not self.is_live:
            say(text)
        elif self._bar is not None:
            # A run may end a step past its total, and tqdm shows more than all as nothing.
            self._bar.n = min(done, self._total)
            try:
                self._bar.set_description_str(text)
            except (OSError, ValueError):
                # stderr was closed: keep working.
                self._bar = None

    def close(self) -> None:
        """End the live line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Progress(StatusLine):
    """How far a training run is, how fast, and how well it plays."""

    RATE_SECONDS = 30.0
    PAUSE_SECONDS = 10.0

    def __init__(self, total: int, *, initial: int = 0) -> None:
        """total: frames of the whole run; initial: frames played before."""
        super().__init__(total, initial)
        self._frames = self._shown_frames = initial
        self._return: float | None = None
        self._epsilon: float | None = None
        self._updated_at = time.monotonic()
        # Moments and frames of the last RATE_SECONDS.
        self._recent = deque([(self._updated_at, initial)])
        encoding = getattr(sys.stderr, "encoding", "") or ""
        self._letter = "ε" if "utf" in encoding else "eps"
        if self.is_live:
            self._show()

    def update(self, frames: int, *, episode_return: float | None, epsilon: float) -> None:
        """frames: played so far. episode_return: mean of the last games, None before any."""
        now = time.monotonic()
        gap, step = now - self._updated_at, frames - self._frames
        if gap > self.PAUSE_SECONDS:
            # An evaluation, not a slow step: the rate is that of training.
            self._recent = deque((moment + gap, before + step) for moment, before in self._recent)
        self._frames, self._return, self._epsilon = frames, episode_return, epsilon
        self._updated_at = now
        if now - self._recent[-1][0] >= LIVE_SECONDS:
            self._recent.append((now, frames))
            while len(self._recent) > 2 and self._recent[1][0] <= now - self.RATE_SECONDS:
                self._recent.popleft()
        if self.is_due():
            self._show()

    def close(self) -> None:
        """Show the last state and end the line."""
        if self.is_live or self._frames != self._shown_frames:
            self._show()
        super().close()

    def _show(self) -> None:
        self._shown_frames = self._frames
        now = time.monotonic()
        since, before = self._recent[0]
        rate = (self._frames - before) / (now - since) if now > since else 0.0
        parts = [f"{_count(self._frames)}/{_count(self._total)} frames"]
        parts.append(f"{_count(round(rate))}/s" if rate else "-/s")
        if rate:
            left = max(0, self._total - self._frames) / rate
            parts.append(f"{tqdm.format_interval(left)} left")
        parts.append(f"return {'-' if self._return is None else _score(self._return)}")
        if self._epsilon is not None:
            parts.append(f"{self._letter} {self._epsilon:.3g}")
        self.show(self._frames, ", ".join(parts))


def _count(number: int) -> str:
    return f"{number:,}" if number < 10_000 else tqdm.format_sizeof(number)


def _score(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
