"""Results to be committed: the small files of each finished run, in a directory of its own.

    config.json          settings and environment, without the place of the run
    metrics.jsonl        the lines of metrics, evenly thinned where there are many
    evaluations.jsonl    evaluations in training
    evaluation.json      the final score, with the return of every game
    provenance.json      see `Provenance`

`report.py` and the results table read such a directory as they read a run directory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

from ebu.commands.reporting.runs import method_settings
from ebu.commands.table.processes import read_processes
from ebu.commands.table.scores import FINAL, as_json, final_record
from ebu.errors import EbuError
from ebu.run.directory import CONFIG, read_config
from ebu.run.files import write_whole
from ebu.run.hints import program_command
from ebu.run.logs import EVALUATIONS, EVENTS, METRICS

PROVENANCE = "provenance.json"
# Longer logs are thinned: about 700 bytes a line, so 50 kB in all.
MOST_LINES = 64


class Provenance(TypedDict):
    """Which code and which machine a run comes from.

    | field | meaning |
    | --- | --- |
    | ebu_version, commit | of the code, each once, in the order in which they trained the run |
    | hardware | processor, its cores, and the graphics card that was there |
    | train_seconds | wall time of all training processes; None if nothing recorded it |
    """

    ebu_version: str
    commit: str
    hardware: str
    train_seconds: float | None


def provenance_of(run_dir: Path) -> Provenance:
    """What is known of where a run, or a committed result, comes from."""
    path = run_dir / PROVENANCE
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return cast(Provenance, {key: record[key] for key in Provenance.__annotations__})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EbuError(f"{path} cannot be read ({error!r}): restore it") from error
    processes = read_processes(run_dir)
    trained = [each["seconds"] for each in processes if each["program"] == "train.py"]

    def named(key: str) -> str:
        return " ".join(dict.fromkeys(each[key] for each in processes if each[key]))

    return {
        "ebu_version": named("ebu_version"),
        "commit": named("commit"),
        "hardware": "; ".join(dict.fromkeys(e["hardware"] for e in processes if e["hardware"])),
        "train_seconds": round(sum(trained), 1) if trained else None,
    }


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
        command = program_command("evaluate.py", run_dir)
        raise EbuError(f"{run_dir} has no final score: score it with: {command}")
    provenance = provenance_of(run_dir)
    for key, value in (code or {}).items():
        provenance[key] = provenance[key] or value  # type: ignore[literal-required]
    if provenance["train_seconds"] is None:
        provenance["train_seconds"] = _logged_seconds(run_dir)
    # Where it lay says nothing to others.
    name = result_dir.name
    metrics = _lines(run_dir / METRICS)
    step = -(-len(metrics) // MOST_LINES) or 1
    write_whole(result_dir / METRICS, b"".join(metrics[::-1][::step][::-1]))
    write_whole(result_dir / EVALUATIONS, b"".join(_lines(run_dir / EVALUATIONS)))
    write_whole(result_dir / FINAL, as_json({**record, "run_dir": name}))
    write_whole(result_dir / PROVENANCE, as_json(provenance))
    own = {**config, "settings": {**settings, "run_dir": name}}
    write_whole(result_dir / CONFIG, as_json(own))


def _lines(path: Path) -> list[bytes]:
    """The whole lines of a log."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EbuError(f"{path} cannot be read: {error.strerror or error}") from error
    return [line for line in lines if line.endswith(b"\n")]


def _logged_seconds(run_dir: Path) -> float | None:
    """Wall time between the first and the last entry of each of TensorBoard's logs, summed."""
    seconds = []
    for path in sorted(run_dir.glob("events.*")):
        if EVENTS.fullmatch(path.name):
            times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
            seconds.append(max(times) - min(times) if times else 0.0)
    return round(sum(seconds), 1) if seconds else None


def differences(recorded: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    """What decides a run's result and is another in a result's settings than in the planned ones.

    A setting that one of them lacks, because its code had none, counts as off.
    """
    # As they read back: a tuple is a list in JSON.
    both = [{"precision": "float32", **recorded}, json.loads(json.dumps(planned))]
    if planned["precision"] == "auto":
        both[1]["precision"] = both[0]["precision"]
    old, new = (
        {**method_settings(settings), **{name: settings.get(name) for name in _THE_RUN}}
        for settings in both
    )
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            if new[name]:
                found.append(f"{name} was no setting, is {new[name]}")
        elif name not in new:
            if old[name]:
                found.append(f"{name} was {old[name]}, is no setting")
        elif old[name] != new[name]:
            found.append(f"{name} was {old[name]}, is {new[name]}")
    return found


# What besides the method makes a run.
_THE_RUN = ("game", "seed", "frames")
