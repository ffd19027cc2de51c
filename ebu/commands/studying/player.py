"""Play a run of a study on this machine: its two processes, their log and their record."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ebu.commands.reporting.runs import tail
from ebu.commands.studying.provenance import append_process
from ebu.errors import EbuError
from ebu.run.directory import METRICS, is_locked
from ebu.run.progress import say

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
    | cores | processor cores it uses |
    | device | as `--device` of the commands |
    """

    run_dir: Path
    frames: int
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    cores: int = 1
    device: str = "cpu"

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


class Player:
    """Plays a task once no other process does: trains, then scores; its log has the output.

    It starts, and goes from one to the other, when it is polled.
    """

    def __init__(self, task: Task, code: dict[str, str]) -> None:
        """`code`: what of the code and the machine is recorded with every process."""
        self.task = task
        self._code = code
        self._programs = [("evaluate.py", task.evaluate), ("train.py", task.train)]
        self._process: subprocess.Popen[bytes] | None = None
        self.is_stopped = False

    def poll(self) -> str | None:
        """How it failed once it has ended, empty if it did not fail; None while it plays.

        Raises `EbuError` where a process cannot be started or recorded.
        """
        if self._process is None:
            if self.is_stopped:
                return "stopped"
            # A process of a machine that has died, or of a killed study, may still be saving.
            if not is_locked(self.task.run_dir):
                self._start()
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._record(code)
        self._process = None
        if code:
            return self._failure(code)
        if self.is_stopped or not self._programs:
            return "stopped" if self._programs else ""
        say(f"{self.task.name}: trained, now scoring")
        self._start()
        return None

    def stop(self) -> None:
        """Ask it to save and to end."""
        self.is_stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait until its process has ended."""
        if self._process is not None:
            self._process.wait()

    def _start(self) -> None:
        self._program, command = self._programs.pop()
        self._started = time.time()
        try:
            self._log: IO[bytes] = self.task.log.open("ab")
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
                preexec_fn=_end_with_the_player if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise EbuError(
                f"cannot start {self._program} for {self.task.name}: {error.strerror or error}; "
                "the same command resumes the study once that is fixed"
            ) from error

    def _record(self, exit_code: int) -> None:
        self._log.close()
        record: dict[str, Any] = {
            "program": self._program,
            "started": self._started,
            "seconds": time.time() - self._started,
            "exit_code": exit_code,
            **self._code,
        }
        append_process(self.task.run_dir, record)

    def _failure(self, exit_code: int) -> str:
        """How the process failed, with the last line it printed."""
        how = f"exit code {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"
        text = ""
        with contextlib.suppress(OSError), self.task.log.open("rb") as log:
            log.seek(self._offset)
            text = log.read().decode(errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        last = lines[-1] if lines else "no output"
        return f"{self._program} failed ({how}): {last} (log: {self.task.log})"


def enter(directory: str) -> None:
    """Work in the directory of the study, which names its files from there.

    Raises `EbuError` on a machine that does not have it.
    """
    try:
        os.chdir(directory)
    except OSError as error:
        host = os.uname().nodename
        raise EbuError(
            f"{host} cannot enter {directory} ({error.strerror}): start the study in a directory "
            "that all machines share"
        ) from error


def _end_with_the_player() -> None:
    """In the child: a killed player takes its process with it, which saves and ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
