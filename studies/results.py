"""The results table of a study, made from its run directories: one row for each run."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ebu.durable import write_whole
from ebu.errors import EbuError, UsageError
from ebu.run_directory import CONFIG
from studies.runs import (
    HUMAN_TABLES,
    Run,
    normalised,
    read_run,
    relative,
    settings_digest,
)

IDENTITY = ("game", "agent", "seed")
COLUMNS = (
    *IDENTITY,
    *("protocol", "preset", "settings", "asked_frames", "frames", "games"),
    *("score", "score_low", "score_high"),
    *(f"human_normalised_{table}" for table in HUMAN_TABLES),
    *("relative_to_dqn_200m", "return_last_100_games"),
    *("train_seconds", "ebu_version", "commit", "run_dir"),
)


def check_table(path: Path) -> str | None:
    """Look at a results table before it is made anew; one line if it is not whole.

    The run directories hold everything that is in it, so nothing is lost with a broken one. Raises
    `UsageError` for a file that is no results table: it is not overwritten.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as a results table ({error}): move it away or choose another "
            "--out"
        ) from error
    header, rows = ",".join(COLUMNS), list(csv.reader(io.StringIO(text)))
    if rows and rows[0][: len(IDENTITY)] != list(IDENTITY) and not header.startswith(text):
        raise UsageError(
            f"{path} is not a results table of a study: move it away or choose another --out"
        )
    for number, row in enumerate(rows, start=1):
        if len(row) != len(COLUMNS) or (number == len(rows) and not text.endswith("\n")):
            return f"{path} was broken in line {number}: it is made anew from the run directories"
    return None if rows else f"{path} was empty: it is made anew from the run directories"


class ResultsTable:
    """`results.csv` of a study: made anew, from all run directories, whenever one has changed."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        """Look at the table that is there; see `check_table`. `say` is told of what is damaged."""
        self.path = out / "results.csv"
        self._runs = out / "runs"
        self._say = say
        self._said: set[str] = set()
        complaint = check_table(self.path)
        if complaint is not None:
            self._warn(complaint)

    def fill(self) -> None:
        """Write the table, whole or not at all. Raises `EbuError` where that fails.

        Damaged run directories are left out, with one line each.
        """
        runs = []
        for run_dir in sorted(path.parent for path in self._runs.glob(f"*/{CONFIG}")):
            try:
                runs.append(read_run(run_dir))
            except EbuError as error:
                self._warn(f"left out of {self.path}: {error}")
        write_table(self.path, runs)

    def _warn(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(f"warning: {line}")


def write_table(path: Path, runs: Sequence[Run]) -> None:
    """Write the table, whole or not at all. Raises `EbuError` where that fails."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for run in runs:
        table.writerow({**row(run), "run_dir": os.path.relpath(run.directory, path.parent)})
    write_whole(path, text.getvalue().encode())


def row(run: Run) -> dict[str, Any]:
    """A run's row, without where it is; what is not known yet is None.

    | column | meaning |
    | --- | --- |
    | settings | digest of the settings that make the method |
    | frames | emulator frames of the weights that were scored; before, those played so far |
    | score, score_low, score_high | mean raw score of the final evaluation, 95 % over its games |
    | human_normalised_… | 0 for random play, 1 for the human of that table |
    | relative_to_dqn_200m | the relative score over Nature DQN at 200M frames |
    | return_last_100_games | mean raw return of the last 100 training games |
    | train_seconds | wall time of the training processes that the study saw end |
    """
    settings, score = run.settings, run.final_score
    if score is not None and not score.final:
        score = None
    low, high = (None, None) if score is None or score.interval is None else score.interval
    processes = read_processes(run.directory)
    return {
        "game": run.game,
        "agent": run.agent,
        "seed": run.seed,
        "protocol": settings["protocol"],
        "preset": settings.get("preset"),
        "settings": settings_digest(settings),
        "asked_frames": run.asked_frames,
        "frames": run.played_frames if score is None else score.frames,
        "games": None if score is None else score.games,
        "score": None if score is None else score.mean,
        "score_low": low,
        "score_high": high,
        **{
            f"human_normalised_{table}": score and normalised(run.game, score.mean, table)
            for table in HUMAN_TABLES
        },
        "relative_to_dqn_200m": score and relative(run.game, score.mean),
        "return_last_100_games": run.last_games,
        "train_seconds": round(
            sum(each["seconds"] for each in processes if each["program"] == "train.py"), 1
        ),
        "ebu_version": " ".join(dict.fromkeys(each["ebu_version"] for each in processes)),
        "commit": " ".join(dict.fromkeys(each["commit"] for each in processes)),
    }


def processes_file(run_dir: Path) -> Path:
    """The list of a run's processes, beside its directory."""
    return run_dir.with_name(f"{run_dir.name}.processes.jsonl")


def append_process(run_dir: Path, record: dict[str, Any]) -> None:
    """Note a process that has ended. Raises `EbuError` where that fails."""
    path = processes_file(run_dir)
    try:
        with path.open("a", encoding="utf-8") as processes:
            processes.write(json.dumps(record) + "\n")
            processes.flush()
            os.fsync(processes.fileno())
    except OSError as error:
        raise EbuError(
            f"cannot write {path}: {error.strerror or error}; free space or make it writable, and "
            "run the same command again"
        ) from error


def read_processes(run_dir: Path) -> list[dict[str, Any]]:
    """The processes of a run that a study saw end; lines that are not whole are left out."""
    path = processes_file(run_dir)
    processes = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                record["seconds"] = float(record["seconds"])
                processes.append({"program": "", "ebu_version": "", "commit": "", **record})
            except (ValueError, KeyError, TypeError):
                continue
    return processes
