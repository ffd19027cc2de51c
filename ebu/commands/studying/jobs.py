"""The runs of a study on an engine: submitted in order, watched, stopped together."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from tqdm import tqdm

from ebu.commands.studying.engine import Engine
from ebu.commands.studying.player import POLL_SECONDS, Task
from ebu.errors import EbuError
from ebu.run.directory import is_locked
from ebu.run.progress import StatusLine, say
from ebu.run.signals import stop_on_signals

# Runs that a line names.
_NAMED = 8


class StudyProgress(StatusLine):
    """How far all runs are, in one line."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._frames = {task.name: task.played_frames() for task in tasks}
        self._all = sum(task.frames for task in tasks)
        self._began, self._before = time.monotonic(), sum(self._frames.values())
        # Each update reads the logs of all runs.
        live = max(2.0, len(tasks) / 20)
        super().__init__(self._all, live_seconds=live, plain_seconds=60.0, leave=False)

    def update(self, running: Sequence[Task], waiting: int) -> None:
        """Show it, if it is time."""
        if not self.is_due():
            return
        self._frames |= {task.name: task.played_frames() for task in running}
        played = sum(self._frames.values())
        rate = (played - self._before) / (time.monotonic() - self._began)
        left = tqdm.format_interval((self._all - played) / rate) if rate > 0 else "?"
        share = "" if self.is_live else f"{played / self._all:.0%} of {len(self._frames)} runs, "
        parts = [
            f"{task.name} {self._frames[task.name] / task.frames:.0%}" for task in running[:_NAMED]
        ]
        parts += [f"{len(running) - _NAMED} more"] * (len(running) > _NAMED)
        self.show(played, f"{share}{left} left, {waiting} waiting, {', '.join(parts)}")

    def finish(self, task: Task) -> None:
        """Count all frames of a run."""
        self._frames[task.name] = task.frames


def run_tasks(
    tasks: Sequence[Task], at_a_time: int, *, engine: Engine, scored: Callable[[Task], str]
) -> tuple[list[str], int | None]:
    """Train and score every run on an engine, at most `at_a_time` of them at once.

    `scored` is called when a run has ended well. It returns what to say of its score, and raises
    `EbuError` where there is none: the run has failed then.

    Returns the names of the runs that failed, whatever the others did, and the signal that ended
    the work before its end, if one did. Raises `EbuError` where the engine fails or a file of its
    own cannot be written; no process is left behind then.
    """
    signals: list[int] = []
    second = "a second Ctrl-C ends the study at once, without waiting for its runs"
    with stop_on_signals(signals.append, second):
        failed = _run(tasks, at_a_time, engine, scored, signals)
    return failed, signals[0] if signals else None


def _run(
    tasks: Sequence[Task],
    at_a_time: int,
    engine: Engine,
    scored: Callable[[Task], str],
    signals: Sequence[int],
) -> list[str]:
    """Train and score until all is done, or a signal has come; the names of what failed."""
    progress = StudyProgress(tasks)
    waiting, running, failed, busy = deque(tasks), list[Task](), list[str](), set[str]()
    stopping = False
    try:
        while waiting or running:
            if signals and not stopping:
                stopping = True
                waiting.clear()
                engine.stop()
            for _ in range(len(waiting)):
                if len(running) == at_a_time or signals:
                    break
                task = waiting.popleft()
                if is_locked(task.run_dir):
                    # Started by hand, or left by a killed study and still saving.
                    waiting.append(task)
                    if task.name not in busy:
                        busy.add(task.name)
                        say(f"{task.name}: waiting for another process that is training it")
                    continue
                played = task.played_frames()
                how = f"resumes at {played / task.frames:.0%}" if played else "starts"
                say(f"{task.name}: {how if played < task.frames else 'has played all its frames'}")
                engine.submit(task)
                running.append(task)
            for task, failure in engine.ended():
                running.remove(task)
                score = ""
                if not failure:
                    try:
                        score = scored(task)
                    except EbuError as error:
                        failure = f"error: {error}"
                if not failure:
                    progress.finish(task)
                    say(f"{task.name}: {score}")
                elif not signals:
                    failed.append(task.name)
                    say(f"{task.name}: {failure}")
            progress.update(running, len(waiting))
            time.sleep(POLL_SECONDS)
    finally:
        # Nothing runs any more unless the study itself has failed.
        if running:
            engine.stop(wait=True)
        progress.close()
    return failed
