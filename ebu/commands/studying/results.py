"""The results table of a study, made from its run directories: one row for each run."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from ebu.commands.reporting.published import HUMAN_TABLES, normalised, relative
from ebu.commands.reporting.runs import Run, read_run, settings_digest
from ebu.commands.studying.provenance import provenance_of
from ebu.errors import EbuError, UsageError
from ebu.run.directory import CONFIG
from ebu.run.files import write_whole
from ebu.run.progress import say
from ebu.run.reading import read_file

COLUMNS = (
    *("game", "agent", "seed", "protocol", "preset", "precision", "settings"),
    *("asked_frames", "frames", "games", "score", "score_low", "score_high"),
    *(f"human_normalised_{table}" for table in HUMAN_TABLES),
    *("relative_to_dqn_200m", "return_last_100_games"),
    *("train_seconds", "hardware", "ebu_version", "commit", "run_dir"),
)


def check_table(path: Path, flag: str) -> None:
    """Raise `UsageError` if the file is no results table, whole or broken: it is not overwritten.

    `flag`: how users name its directory. The run directories hold everything that is in a table, so
    nothing is lost with a broken one.
    """
    try:
        text = read_file(path).decode()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as a results table ({error}): move it away or choose another "
            f"{flag}"
        ) from error
    if not text.startswith("game,agent,seed,") and not ",".join(COLUMNS).startswith(text):
        raise UsageError(
            f"{path} is not a results table of a study: move it away or choose another {flag}"
        )


class ResultsTable:
    """`results.csv` of a study: rewritten from all its directories whenever one has changed."""

    def __init__(
        self, folder: Path, runs: Path, games: int | None = None, *, flag: str = "--out"
    ) -> None:
        """Check the table that exists; see `check_table`.

        | argument | meaning |
        | --- | --- |
        | folder | where the table is written |
        | runs | holds the run directories, or the results, that make it |
        | games | which of several scores of a run counts: see `final_record` |
        | flag | how users name the folder |
        """
        self.path = folder / "results.csv"
        self._runs = runs
        self._games = games
        self._said: set[str] = set()
        check_table(self.path, flag)

    def fill(self) -> None:
        """Write the table, whole or not at all. Raises `EbuError` where that fails.

        Damaged directories are left out, with one line each.
        """
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        for run_dir in sorted(path.parent for path in self._runs.glob(f"*/{CONFIG}")):
            try:
                cells = row(read_run(run_dir, self._games))
            except EbuError as error:
                line = f"warning: left out of {self.path}: {error}"
                if line not in self._said:
                    self._said.add(line)
                    say(line)
            else:
                where = os.path.relpath(run_dir, self.path.parent)
                table.writerow({**cells, "run_dir": where})
        write_whole(self.path, text.getvalue().encode(errors="backslashreplace"))


def row(run: Run) -> dict[str, Any]:
    """A run's row, without `run_dir`; what is not known yet is None.

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
        "games": score and score.games,
        "score": score and score.mean,
        "score_low": low,
        "score_high": high,
        **{
            f"human_normalised_{table}": score and normalised(run.game, score.mean, table)
            for table in HUMAN_TABLES
        },
        "relative_to_dqn_200m": score and relative(run.game, score.mean),
        "return_last_100_games": run.last_games,
        **provenance_of(run.directory),
    }
