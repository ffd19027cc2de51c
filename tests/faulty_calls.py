"""Commands in forked children, whose calls to the system are killed or fail at a chosen place.

The children share what the parent has imported, so that each starts at once.
"""

import builtins
import contextlib
import errno
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

import ebu.commands.distilling.export  # noqa: F401 (loaded before any fork)
from ebu.commands import distill, evaluate, export, study, train
from ebu.commands.studying import player
from ebu.run.cli import run_command

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)
MAINS: dict[str, Callable[[], int]] = {
    "train": train.main,
    "evaluate": evaluate.main,
    "study": study.main,
    "distill": distill.main,
    "export": export.main,
}
SECONDS = 900
"""No command here takes as long: one that waits for ever is ended."""
READING = ("stat", "lstat", "listdir", "scandir")
"""Calls that need no space: they fail with EIO alone."""
CHANGING = (
    *("fsync", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"),
    *("open", "write", "truncate", "ftruncate"),
)


class Fault:
    """What happens at a call that touches the files of a directory: nothing, a kill, an error."""

    def __init__(
        self, root: Path, at: int = 0, number: int | None = None, *, lasting: bool = False
    ) -> None:
        """`number`: of the error; None kills. `at`: the call, counted from 1; 0 for none."""
        self.calls: list[str] = []
        self._root, self._at, self._number, self._lasting = str(root), at, number, lasting

    def install(self) -> None:
        """Watch all calls of this process from now on."""
        for name in (*READING, *CHANGING):
            setattr(os, name, self._faulty(name, getattr(os, name)))
        opening = io.open

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            self.reach("open", file)
            if not set(mode) & set("wax"):
                return opening(file, mode, *args, **kwargs)
            return self._open_to_write(file, mode, *args, **kwargs)

        builtins.open = io.open = open_

    def reach(self, name: str, where: Any, dir_fd: int | None = None) -> None:
        """Count a call, and let it fail, or kill the process, if it is its turn."""
        path = _path_of(where)
        if dir_fd is not None:
            path = os.path.join(_path_of(dir_fd), path)
        if path != self._root and not path.startswith(f"{self._root}/"):
            return
        self.calls.append(name)
        turn = len(self.calls)
        if turn == self._at or (self._lasting and 0 < self._at < turn):
            if self._number is None:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
            if name in READING and turn == self._at:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            if name not in READING or self._number == errno.EIO:
                raise OSError(self._number, os.strerror(self._number or 0), path)

    def _faulty(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            where = args[0] if args else kwargs.get("path", ".")
            self.reach(name, where, kwargs.get("dir_fd") or kwargs.get("src_dir_fd"))
            return original(*args, **kwargs)

        return call

    def _open_to_write(
        self,
        file: Any,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """As `open`, over a file whose writes and whose close are watched."""
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.reach = self.reach
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)


class _Raw(io.FileIO):
    reach: Callable[..., None]
    written = False

    def write(self, data: Any) -> int:
        self.reach("write", self.name)
        self.written = True
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            path = _path_of(self.name)
            super().close()
            if self.written:
                # What a network's file system says late.
                self.reach("close", path)


def _path_of(where: Any) -> str:
    if isinstance(where, int):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{where}")
        return ""
    return os.fsdecode(where)


def run(command: str, words: Sequence[object], log: Path, fault: Fault) -> tuple[int, list[str]]:
    """Run a command in a forked child: its exit code, negative for a signal, and its calls."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(SECONDS)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

        def say_calls() -> None:
            with contextlib.suppress(OSError), os.fdopen(writing, "w") as pipe:
                json.dump(fault.calls, pipe)

        vars(player)["subprocess"] = _Forking
        ForkedProcess.inherited = writing
        fault.install()
        _end_with(command, words, say_calls)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        calls = json.loads(pipe.read() or b"[]")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), calls


def _end_with(command: str, words: Sequence[object], before: Callable[[], None]) -> None:
    """Run a command and end this process without a word of the parent's."""
    code = 70
    # Forks share the lock of tqdm: one that is killed while it holds it never releases it.
    tqdm.set_lock(threading.RLock())
    try:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.argv = [f"{command}.py", *map(str, words)]
        run_command(MAINS[command])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        before()
        os._exit(code)


class ForkedProcess:
    """Stands in for `subprocess.Popen` on this project's commands, with a fork for an import."""

    inherited = -1
    """A descriptor that is not the child's."""

    def __init__(
        self, argv: Sequence[str], *, stdout: IO[bytes], preexec_fn: Any, **_: Any
    ) -> None:
        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self.inherited)
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            preexec_fn()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            _end_with(Path(argv[1]).stem, argv[2:], lambda: None)

    def poll(self) -> int | None:
        """As that of `Popen`."""
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        """As that of `Popen`."""
        return self._ended(0)

    def terminate(self) -> None:
        """As that of `Popen`."""
        os.kill(self._pid, signal.SIGTERM)

    def _ended(self, how: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._pid, how)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


class _Forking:
    """What `player` asks of the module `subprocess`."""

    Popen = ForkedProcess
    DEVNULL = None
