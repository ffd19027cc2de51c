"""Progress on standard error: live on a terminal, elsewhere a plain line now and then."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

LIVE_SECONDS, PLAIN_SECONDS = 0.5, 30.0
"""Between two lines: on a terminal, and elsewhere."""


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; the function given is called with the number so far."""
    every = LIVE_SECONDS if sys.stderr.isatty() else PLAIN_SECONDS
    with tqdm(
        desc=what or None,
        total=total,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=every,
        maxinterval=every,
        dynamic_ncols=True,
    ) as bar:
        yield lambda done: bar.update(done - bar.n)


def say(line: str) -> None:
    """Print a line on standard error; on a terminal it appears above the bars."""
    # stderr was closed: keep working.
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


class Progress:
    """How far a run is: one live line on a terminal, elsewhere a plain line now and then."""

    RATE_SECONDS = 30.0
    PAUSE_SECONDS = 10.0

    def __init__(self, total: int | None, *, initial: int = 0) -> None:
        """total: frames of the whole run, None if it has no end; initial: frames played before."""
        self._total = total
        self._frames = initial
        self._return: float | None = None
        self._epsilon = 1.0
        now = time.monotonic()
        self._updated_at = now
        self._recent = deque([(now, initial)])  # moments and frames of the last RATE_SECONDS
        self._shown_at = now
        self._shown_frames = initial
        self._stream = sys.stderr
        self._letter = "ε" if "utf" in (getattr(self._stream, "encoding", "") or "") else "eps"
        self._bar: tqdm[Any] | None = None
        if self._stream is not None and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=self._line(now),
                bar_format="{percentage:3.0f}% |{bar}| {desc}" if total else "{desc}",
                dynamic_ncols=True,
                file=self._stream,
            )

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
        if now - self._shown_at >= (PLAIN_SECONDS if self._bar is None else LIVE_SECONDS):
            self._show(now)

    def write(self, line: str) -> None:
        """Print a line; on a terminal it appears above the bar."""
        if self._stream is None:
            return
        try:
            if self._bar is not None:
                self._bar.write(line, file=self._stream)
            else:
                print(line, file=self._stream, flush=True)
        except (OSError, ValueError):
            # stderr was closed: keep training.
            self._stream = self._bar = None

    def close(self) -> None:
        """Show the last state and end the line."""
        if self._bar is not None or self._frames != self._shown_frames:
            self._show(time.monotonic())
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_frames = now, self._frames
        if self._bar is None:
            self.write(self._line(now))
            return
        # A run may end a step past its total, and tqdm shows more than all as nothing.
        self._bar.n = self._frames if self._total is None else min(self._frames, self._total)
        try:
            self._bar.set_description_str(self._line(now))
        except (OSError, ValueError):
            self._stream = self._bar = None

    def _line(self, now: float) -> str:
        since, before = self._recent[0]
        rate = (self._frames - before) / (now - since) if now > since else 0.0
        parts = [
            _count(self._frames) + (f"/{_count(self._total)}" if self._total else "") + " frames"
        ]
        parts.append(f"{_count(round(rate))}/s" if rate else "-/s")
        if self._total and rate:
            left = max(0, self._total - self._frames) / rate
            parts.append(f"{tqdm.format_interval(left)} left")
        parts.append(f"return {'-' if self._return is None else _score(self._return)}")
        parts.append(f"{self._letter} {self._epsilon:.3g}")
        return ", ".join(parts)


def _count(number: int) -> str:
    return f"{number:,}" if number < 10_000 else tqdm.format_sizeof(number)


def _score(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
