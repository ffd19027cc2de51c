"""Results to be committed: the small files of each finished run, in a directory of its own.

    config.json          settings and environment, without the run's directory
    metrics.jsonl        the lines of metrics, evenly thinned where there are many
    evaluations.jsonl    evaluations in training
    evaluation.json      the final score, with the return of every game
    provenance.json      see `provenance_of`

`report.py` and the results table read such a directory as they read a run directory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebu.commands.reporting.runs import method_settings
from ebu.commands.reporting.scores import FINAL, final_record
from ebu.commands.studying.provenance import PROVENANCE, provenance_of
from ebu.commands.trust import evaluate_command
from ebu.errors import EbuError
from ebu.run.directory import (
    AUTOMATIC,
    CONFIG,
    EVALUATIONS,
    EVENTS,
    METRICS,
    differences,
    read_config,
)
from ebu.run.files import as_json, write_whole
from ebu.run.reading import LARGEST_FLOAT, MOST_LOG_BYTES, read_file

# Longer logs are thinned: about 700 bytes a line, so 50 kB in all.
MOST_LINES = 64
# Settings that, with the method, make a run.
_THE_RUN = ("game", "seed", "frames")


def write_result(
    run_dir: Path, result_dir: Path, games: int, code: Mapping[str, str] | None = None
) -> None:
    """Copy the small files of a finished, scored run.

    | argument | meaning |
    | --- | --- |
    | games | of the score that is the run's |
    | code | version, commit and hardware of a run whose processes were not recorded |

    config.json is written last: a directory without it is no result and is written again. Raises
    `EbuError` where a file cannot be read or written.
    """
    config = read_config(run_dir)
    settings = config["settings"]
    record = final_record(run_dir, settings["protocol"], games)
    if record is None:
        raise EbuError(f"{run_dir} has no final score: score it with: {evaluate_command(run_dir)}")
    provenance = provenance_of(run_dir)
    for key, value in (code or {}).items():
        provenance[key] = provenance[key] or value
    if provenance["train_seconds"] is None:
        provenance["train_seconds"] = _logged_seconds(run_dir)
    name = result_dir.name
    metrics = _lines(run_dir / METRICS)
    step = -(-len(metrics) // MOST_LINES) or 1
    for file, content in (
        (METRICS, b"".join(metrics[::-1][::step][::-1])),
        (EVALUATIONS, b"".join(_lines(run_dir / EVALUATIONS))),
        (FINAL, as_json({**record, "run_dir": name})),
        (PROVENANCE, as_json(provenance)),
        (CONFIG, as_json({**config, "settings": {**settings, "run_dir": name}})),
    ):
        write_whole(result_dir / file, content)


def _lines(path: Path) -> list[bytes]:
    """The whole lines of a log."""
    try:
        lines = read_file(path, MOST_LOG_BYTES).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise EbuError(f"{path} cannot be read: {error}") from error
    return [line for line in lines if line.endswith(b"\n")]


def _logged_seconds(run_dir: Path) -> float | None:
    """Wall time between the first and the last entry of each of TensorBoard's logs, summed.

    None without logs, and where one is damaged.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    seconds = []
    for path in sorted(run_dir.glob("events.*")):
        if EVENTS.fullmatch(path.name):
            try:
                times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
            # What TensorBoard meets in a damaged record has no base of its own.
            except Exception:
                return None
            if not all(abs(time) < LARGEST_FLOAT for time in times):
                return None
            seconds.append(max(times) - min(times) if times else 0.0)
    return round(sum(seconds), 1) if seconds else None


def result_differences(recorded: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    """What decides a run's result and differs between recorded and planned settings.

    A setting that one of them lacks, because its code had none, counts as off.
    """
    # As it reads back: a tuple is a list in JSON.
    recorded = json.loads(json.dumps({"precision": "float32", **recorded}))
    for name in ("precision", "num_envs"):
        if planned.get(name) == AUTOMATIC[name]:
            planned = {**planned, name: recorded.get(name)}
    old, new = (
        {**method_settings(settings), **{name: settings.get(name) for name in _THE_RUN}}
        for settings in (recorded, planned)
    )
    for one, other, settings in ((old, new, recorded), (new, old, planned)):
        lacking = other.keys() - one.keys() - settings.keys()
        one.update({name: other[name] for name in lacking if not other[name]})
    return differences(old, new)
