"""Pieces of a measurement, worked off by another process: one that fails costs no other.

The process appends a line of JSON to the results file as soon as there is something to say, so that
nothing is lost when it is killed:

| keys besides `piece` and `t`, the seconds since the first process started | when |
| --- | --- |
| `started` | its limit in seconds | before a piece |
| its figures | as often as there are some |
| `warning` | the first line of a warning |
| `error` | the last 200 lines of the traceback, or of what the process printed before it ended |
| `done` | the seconds it took |

A piece that takes longer than its limit is stopped, with the stacks of all threads in its `error`.
After that, or when an error has cost the device, a new process does the rest.
"""

import contextlib
import faulthandler
import gc
import json
import os
import signal
import subprocess
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ebu.run.progress import say

ROOT = Path(__file__).resolve().parents[1]
ERROR_LINES = 200
LOST = 3
"""Exit code of a process that cannot use its device any more."""
SHOW_STACKS = signal.SIGUSR1

Figures = Mapping[str, Any]


class Piece(NamedTuple):
    """A call that yields figures, each as soon as it is known, in at most so many seconds."""

    name: str
    seconds: float
    measure: Callable[[], Iterable[Figures]]


class Notes:
    """The results file: lines are appended, and each is complete when it is there."""

    def __init__(self, path: Path, began: float) -> None:
        self.path = path
        self.began = began

    def add(self, piece: str, figures: Figures) -> None:
        """Append what is known of a piece."""
        assert not {"piece", "t"} & figures.keys()
        line = {"piece": piece, "t": round(time.time() - self.began, 1), **figures}
        with self.path.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All complete lines."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines(True) if "\n" in line]


def last_lines(text: str) -> str:
    """The end of a text, where errors say what they are."""
    return "\n".join(text.strip().splitlines()[-ERROR_LINES:])


def work(pieces: Iterable[Piece], names: Sequence[str], path: Path, began: float) -> int:
    """Measure the pieces of these names and note what they yield; returns an exit code."""
    faulthandler.register(SHOW_STACKS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    notes = Notes(path, began)
    for piece in pieces:
        if piece.name not in names:
            continue
        notes.add(piece.name, {"started": piece.seconds})
        started = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                for figures in piece.measure():
                    notes.add(piece.name, figures)
            except Exception as error:
                notes.add(piece.name, {"error": last_lines(traceback.format_exc())})
                if "CUDA error" in str(error) or "illegal memory access" in str(error):
                    return LOST
            else:
                notes.add(piece.name, {"done": round(time.monotonic() - started, 2)})
        for line in sorted({str(each.message).partition("\n")[0] for each in caught}):
            notes.add(piece.name, {"warning": line})
        gc.collect()
    return 0


def _end_with(parent: int) -> None:
    """Kill this process and its children when the one that supervises it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)


def supervise(
    command: Sequence[str],
    pieces: Sequence[Piece],
    path: Path,
    minutes: float,
    context: Figures,
) -> list[str]:
    """Have all pieces measured by processes of a command; returns the names of those that failed.

    | argument | meaning |
    | --- | --- |
    | command | to which the time it began and the names of pieces are added: it calls `work` |
    | path | results file, replaced; what processes print goes to the same name with .log |
    | minutes | for all pieces together |
    | context | noted first, as of the piece "machine" |
    """
    began = time.time()
    path.unlink(missing_ok=True)
    notes, log = Notes(path, began), path.with_suffix(".log")
    log.write_text("")
    notes.add("machine", context)
    limits = {piece.name: piece.seconds for piece in pieces}
    waiting = list(limits)
    while waiting and time.time() < began + 60 * minutes:
        with log.open("a") as output:
            process = subprocess.Popen(
                [*command, str(began), *waiting],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        try:
            current, why = _watch(process, notes, limits, began + 60 * minutes)
        finally:
            _kill(process)
        if why:
            notes.add(current or waiting[0], {"error": f"{last_lines(log.read_text())}\n{why}"})
        # Without a first piece the next process would fail alike.
        waiting = waiting[waiting.index(current) + 1 :] if current else []
    for name in waiting if time.time() >= began + 60 * minutes else ():
        notes.add(name, {"error": "no time was left"})
    return failures(notes.read(), limits)


def failures(lines: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Pieces of these names that have an error, or never came to their end."""
    done = {line["piece"] for line in lines if "done" in line}
    return [name for name in names if name not in done]


def _watch(
    process: "subprocess.Popen[bytes]", notes: Notes, limits: Mapping[str, float], ends: float
) -> tuple[str | None, str]:
    """Wait for the process, or for the moment to stop it: the last piece, and what is wrong."""
    current, since, seen = None, time.time(), len(notes.read())
    over = True
    while True:
        code = process.poll()
        lines = notes.read()
        for line in lines[seen:]:
            if "started" in line:
                current, since, over = line["piece"], time.time(), False
                say(f"{line['t']:6.1f} s  {current}")
            elif "error" in line:
                say(f"{line['t']:6.1f} s  {current}: {line['error'].splitlines()[-1]}")
            over = over or "error" in line or "done" in line
        seen = len(lines)
        if code is not None:
            return current, "" if over and current else f"the process ended with {code}"
        limit = limits[current] if current else 120.0
        if (not over and time.time() > min(since + limit, ends)) or (over and time.time() > ends):
            process.send_signal(SHOW_STACKS)
            time.sleep(0.5)
            return current, "" if over else f"stopped after {time.time() - since:.0f} s"
        time.sleep(0.1)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tables(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What was noted, as Markdown: a list of figures under each piece."""
    title = None
    for line in lines:
        if line["piece"] != title:
            title = line["piece"]
            yield f"\n## {title}\n"
        figures = {key: value for key, value in line.items() if key not in ("piece", "t")}
        if "error" in figures:
            yield f"\n    {figures['error']}\n".replace("\n", "\n    ")
        elif "started" not in figures:
            yield "- " + ", ".join(f"{key} {_short(value)}" for key, value in figures.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
