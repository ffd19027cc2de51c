"""The results table of a study, made from its run directories: one row for each run."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ebu.commands.reporting.runs import (
    HUMAN_TABLES,
    Run,
    normalised,
    read_run,
    relative,
    settings_digest,
)
from ebu.commands.table.committed import provenance_of
from ebu.errors import EbuError, UsageError
from ebu.run.directory import CONFIG
from ebu.run.files import write_whole

IDENTITY = ("game", "agent", "seed")
COLUMNS = (
    *IDENTITY,
    *("protocol", "preset", "precision", "settings", "asked_frames", "frames", "games"),
    *("score", "score_low", "score_high"),
    *(f"human_normalised_{table}" for table in HUMAN_TABLES),
    *("relative_to_dqn_200m", "return_last_100_games"),
    *("train_seconds", "hardware", "ebu_version", "commit", "run_dir"),
)


def check_table(path: Path) -> str | None:
    """Check a results table before it is written again; one line if it is not whole.

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
            return f"{path} was broken in line {number}: it is written again from the runs"
    return None if rows else f"{path} was empty: it is written again from the runs"


class ResultsTable:
    """`results.csv` of a study: made again, from all its directories, whenever one has changed."""

    def __init__(
        self, folder: Path, runs: Path, say: Callable[[str], None], games: int | None = None
    ) -> None:
        """Look at the table that is there; see `check_table`.

        | argument | meaning |
        | --- | --- |
        | folder | where the table is written |
        | runs | holds the run directories, or the results, that make it |
        | say | is told of what is damaged |
        | games | which of several scores of a run counts: see `final_record` |
        """
        self.path = folder / "results.csv"
        self._runs = runs
        self._games = games
        self._say = say
        self._said: set[str] = set()
        complaint = check_table(self.path)
        if complaint is not None:
            self._warn(complaint)

    def fill(self) -> None:
        """Write the table, whole or not at all. Raises `EbuError` where that fails.

        Damaged directories are left out, with one line each.
        """
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        for run, cells in self._read():
            where = os.path.relpath(run.directory, self.path.parent)
            table.writerow({**cells, "run_dir": where})
        write_whole(self.path, text.getvalue().encode())

    def _read(self) -> Iterator[tuple[Run, dict[str, Any]]]:
        for run_dir in sorted(path.parent for path in self._runs.glob(f"*/{CONFIG}")):
            try:
                run = read_run(run_dir, self._games)
                yield run, row(run)
            except EbuError as error:
                self._warn(f"left out of {self.path}: {error}")

    def _warn(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(f"warning: {line}")


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
    | precision | arithmetic of the networks |
    | train_seconds | wall time of the training processes, as far as it is recorded |
    | hardware | of the machine that trained it |
    """
    settings, score = run.settings, run.final_score
    if score is not None and not score.final:
        score = None
    low, high = (None, None) if score is None or score.interval is None else score.interval
    provenance = provenance_of(run.directory)
    return {
        "game": run.game,
        "agent": run.agent,
        "seed": run.seed,
        "protocol": settings["protocol"],
        "preset": settings.get("preset"),
        "precision": run.precision,
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
        "train_seconds": provenance["train_seconds"],
        "hardware": provenance["hardware"],
        "ebu_version": provenance["ebu_version"],
        "commit": provenance["commit"],
    }
