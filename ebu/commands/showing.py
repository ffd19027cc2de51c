"""Show games in a window while they are played, and film the best one."""

import sys
from itertools import islice
from pathlib import Path
from time import monotonic

import numpy as np

from ebu.errors import EbuError, UsageError
from ebu.evaluation import Evaluation
from ebu.interfaces import VectorEnvironment
from ebu.run.video import write_video
from envs.film import Camera, CannotFilmError, film

# Agents act 15 times a second; every second picture at 15 a second plays twice as fast.
VIDEO_FPS = 15
VIDEO_EVERY = 2
VIDEO_SECONDS = 120
LIVE_FPS = 15


class Window:
    """Shows environment 0 while it plays; closing it does not end the evaluation."""

    def __init__(self, env: VectorEnvironment, title: str) -> None:
        import matplotlib.pyplot as plt

        self._plt = plt
        self._failed = False
        self._camera = Camera(env, 0)
        self._figure, axes = plt.subplots(num=title)
        axes.set_axis_off()
        self._image = axes.imshow(self._camera.picture())
        self._figure.tight_layout()
        plt.show(block=False)
        self._shown_at = monotonic()

    def watch(self, actions: np.ndarray) -> None:
        """Follow environment 0 by one step of all, actions (N,); where that fails, warn and end."""
        if self._failed:
            return
        try:
            if not self._plt.fignum_exists(self._figure.number):
                return
            self._camera.step(int(actions[0]))
            self._image.set_data(self._camera.picture())
            # Also lets the window answer; a step of zero seconds would not.
            self._plt.pause(max(0.001, self._shown_at + 1 / LIVE_FPS - monotonic()))
        except Exception as error:  # of the environment that draws itself, or of a lost display
            self._failed = True
            warn("the games are no longer shown", error)
        self._shown_at = monotonic()

    def close(self) -> None:
        """Release the environment that is drawn."""
        self._camera.close()


def open_window(env: VectorEnvironment, title: str) -> Window | None:
    """A window on environment 0; None, with a warning, where it cannot be drawn."""
    try:
        return Window(env, title)
    except Exception as error:
        warn("the games cannot be shown", error)
        return None


def film_best(path: Path, env: VectorEnvironment, played: Evaluation) -> None:
    """Write the best game as a video, cut after `VIDEO_SECONDS`; where it fails, warn.

    Raises `EbuError` where the disk fails.
    """
    try:
        _film_best(path, env, played)
    except EbuError:
        raise
    except Exception as error:
        warn(f"{path} was not written, the best game could not be filmed", error)


def warn(what: str, error: Exception) -> None:
    """Print a line on pictures that failed: they are decoration, and end nothing."""
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"warning: {what}: {reason}", file=sys.stderr)


def _film_best(path: Path, env: VectorEnvironment, played: Evaluation) -> None:
    best = played.best_game
    shown = -(-int(played.stops[best] - played.starts[best] + 1) // VIDEO_EVERY)
    most = VIDEO_SECONDS * VIDEO_FPS
    pictures = islice(film(env, *played.recording(best)), 0, None, VIDEO_EVERY)
    write_video(path, islice(pictures, most), fps=VIDEO_FPS)
    cut = f"; its first {most / shown:.0%}, the rest is left out" if shown > most else ""
    print(f"{path.name}: the best game, {played.returns[best]:,g} points{cut}", file=sys.stderr)


def check_pictures(env: VectorEnvironment) -> None:
    """Raise `UsageError` for environments without pictures; drawing them may still fail."""
    try:
        next(film(env, 0, np.empty(0, dtype=np.int64), 0, 0))
    except CannotFilmError as error:
        raise UsageError(f"no pictures for --video or --render: {error}") from error
    except Exception:  # said when the score is
        return


def check_display() -> None:
    """Raise `UsageError` where no window can be opened."""
    from matplotlib import pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    # Asking resolves the backend: one without windows is what is left where no display is found.
    windows = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    if plt.get_backend().lower() not in windows:
        raise UsageError(
            "--render: no display, or no window toolkit for matplotlib, was found; "
            "--video FILE.gif writes the best game instead"
        )
