"""The processes of a study: started some at a time, watched, stopped together, recorded."""

import contextlib
import ctypes
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ebu.commands.reporting.runs import tail
from ebu.commands.table.provenance import append_process
from ebu.errors import EbuError
from ebu.run.directory import METRICS, is_locked
from ebu.run.progress import StatusLine, say
from ebu.run.signals import stop_on_signals

POLL_SECONDS = 0.2
# Loaded before any fork: a forked child may load nothing.
_LIBC = ctypes.CDLL(None)
# prctl: the signal a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """One run: trained by the main command, then scored once.

    | field | meaning |
    | --- | --- |
    | frames | emulator frames it is to play |
    | train, evaluate | the commands |
    """

    run_dir: Path
    frames: int
    train: tuple[str, ...]
    evaluate: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def log(self) -> Path:
        """Everything its processes print, next to the run directory."""
        return self.run_dir.with_name(f"{self.name}.log")

    def played_frames(self) -> int:
        """Emulator frames at the last line of metrics, at most those it is to play."""
        # A damaged log is the run's to complain of.
        with contextlib.suppress(EbuError):
            lines = tail(self.run_dir / METRICS)
            return min(lines[-1]["frames"], self.frames) if lines else 0
        return 0


class StudyProgress(StatusLine):
    """How far all runs are, in one line."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._frames = {task.name: task.played_frames() for task in tasks}
        self._all = sum(task.frames for task in tasks)
        self._began, self._before = time.monotonic(), sum(self._frames.values())
        super().__init__(self._all, live_seconds=2.0, plain_seconds=60.0, leave=False)

    def update(self, running: Sequence[Task], waiting: int) -> None:
        """Show it, if it is time."""
        if not self.is_due():
            return
        self._frames |= {task.name: task.played_frames() for task in running}
        played = sum(self._frames.values())
        rate = (played - self._before) / (time.monotonic() - self._began)
        left = tqdm.format_interval((self._all - played) / rate) if rate > 0 else "?"
        share = "" if self.is_live else f"{played / self._all:.0%} of {len(self._frames)} runs, "
        parts = [f"{task.name} {self._frames[task.name] / task.frames:.0%}" for task in running]
        self.show(played, f"{share}{left} left, {waiting} waiting, {', '.join(parts)}")

    def finish(self, task: Task) -> None:
        """Count all frames of a run."""
        self._frames[task.name] = task.frames


class Worker:
    """A process of a run, with its output in the run's log."""

    def __init__(self, task: Task, program: str, command: Sequence[str], code: dict[str, str]):
        self.task = task
        self.program = program
        self._code = code
        self._started = time.time()
        try:
            self._log: IO[bytes] = task.log.open("ab")
            self._log.write(f"$ {' '.join(command)}\n".encode(errors="backslashreplace"))
            self._log.flush()
            self._offset = self._log.tell()
            # A session of its own: Ctrl-C in a terminal reaches the study alone, which passes on
            # one signal; a second would end the process before its checkpoint is written.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                preexec_fn=_end_with_the_study if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise EbuError(
                f"cannot start {program} for {task.name}: {error.strerror or error}; the same "
                "command resumes the study once that is fixed"
            ) from error

    def stop(self) -> None:
        """Ask the process to save and to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait()

    def poll(self) -> int | None:
        """Its exit code once it has ended, negative for a signal; the process is then recorded."""
        code = self._process.poll()
        if code is not None:
            self._log.close()
            record: dict[str, Any] = {
                "program": self.program,
                "started": self._started,
                "seconds": time.time() - self._started,
                "exit_code": code,
                **self._code,
            }
            append_process(self.task.run_dir, record)
        return code

    def failure(self, exit_code: int) -> str:
        """How the process failed, with the last line it printed."""
        how = f"exit code {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"
        with self.task.log.open("rb") as log:
            log.seek(self._offset)
            text = log.read().decode(errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        last = lines[-1] if lines else "no output"
        return f"{self.program} failed ({how}): {last} (log: {self.task.log})"


def _end_with_the_study() -> None:
    """In the child: a study that is killed takes its processes with it; they save and end."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_tasks(
    tasks: Sequence[Task], at_a_time: int, *, code: dict[str, str], scored: Callable[[Task], str]
) -> tuple[list[str], int | None]:
    """Train and score every run, `at_a_time` of them at once.

    | argument | meaning |
    | --- | --- |
    | code | what of the code is recorded with every process |
    | scored | called when a run has its score; returns what to say of it |

    Returns the names of the runs that failed, whatever the others did, and the signal that ended
    the work before its end, if one did. Raises `EbuError` where a file of the study cannot be
    written; no process is left behind then.
    """
    signals: list[int] = []
    with stop_on_signals(signals.append):
        failed = _run(tasks, at_a_time, code, scored, signals)
    return failed, signals[0] if signals else None


def _run(
    tasks: Sequence[Task],
    at_a_time: int,
    code: dict[str, str],
    scored: Callable[[Task], str],
    signals: Sequence[int],
) -> list[str]:
    """Train and score until all is done, or a signal has come; the names of what failed."""
    progress = StudyProgress(tasks)
    waiting, running, failed, busy = deque(tasks), list[Worker](), list[str](), set[str]()
    stopping = False
    try:
        while waiting or running:
            if signals and not stopping:
                stopping = True
                waiting.clear()
                for worker in running:
                    worker.stop()
            for _ in range(len(waiting)):
                if len(running) == at_a_time:
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
                running.append(Worker(task, "train.py", task.train, code))
            for worker in running.copy():
                exit_code = worker.poll()
                if exit_code is None:
                    continue
                running.remove(worker)
                task = worker.task
                if exit_code == 0:
                    progress.finish(task)
                    if worker.program == "evaluate.py":
                        say(f"{task.name}: {scored(task)}")
                    elif not signals:
                        say(f"{task.name}: trained, now scoring")
                        running.append(Worker(task, "evaluate.py", task.evaluate, code))
                elif not signals:
                    failed.append(task.name)
                    say(f"{task.name}: {worker.failure(exit_code)}")
            progress.update([worker.task for worker in running], len(waiting))
            time.sleep(POLL_SECONDS)
    finally:
        # Nothing runs any more unless the study itself has failed.
        for worker in running:
            worker.stop()
        for worker in running:
            worker.wait()
        progress.close()
    return failed
