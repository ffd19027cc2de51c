"""Where a run comes from: which code ran it, on which machine, and for how long."""

import contextlib
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ebu.errors import EbuError
from ebu.run.files import is_there, writing
from ebu.run.hardware import graphics_card, hardware
from ebu.run.hints import PROJECT
from ebu.run.reading import (
    MOST_LOG_BYTES,
    RefusedFileError,
    parse_json,
    read_file,
    read_json,
)

PROVENANCE = "provenance.json"
# What lines of earlier versions may lack.
_UNKNOWN = {"program": "", "ebu_version": "", "commit": "", "hardware": ""}


class Process(TypedDict):
    """A line on a process that has ended."""

    program: NotRequired[str]
    seconds: float
    ebu_version: NotRequired[str]
    commit: NotRequired[str]
    hardware: NotRequired[str]


class Provenance(TypedDict):
    """The content of provenance.json."""

    ebu_version: str
    commit: str
    hardware: str
    train_seconds: float | None


def code_version() -> dict[str, str]:
    """Version and commit of the code that runs, as far as they are known, and the machine.

    The commit ends in "-dirty" where files have changed since, other than those of docs/, among
    which are the results that studies write.
    """
    try:
        version = metadata.version("ebu")
    except metadata.PackageNotFoundError:
        version = ""
    commit = ""
    if (PROJECT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = _git("rev-parse", "--short", "HEAD")
            commit += "-dirty" * bool(_git("diff", "--name-only", "HEAD", "--", ".", ":!docs"))
    return {"ebu_version": version, "commit": commit, "hardware": machine()}


def _git(*args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT), *args], capture_output=True, text=True, check=True
    ).stdout.strip()


def machine() -> str:
    """The processor and the graphics card."""
    return ", ".join(filter(None, (hardware(), graphics_card())))


def append_process(run_dir: Path, record: dict[str, Any]) -> None:
    """Record a process that has ended. Raises `EbuError` where that fails."""
    path = _processes_file(run_dir)
    with writing(path), path.open("a", encoding="utf-8") as processes:
        processes.write(json.dumps(record) + "\n")
        processes.flush()
        os.fsync(processes.fileno())


def read_processes(run_dir: Path) -> list[dict[str, Any]]:
    """The ended processes of a run that a study started; lines that are not whole are left out."""
    path = _processes_file(run_dir)
    processes = []
    try:
        text = read_file(path, MOST_LOG_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise EbuError(f"{path} cannot be read ({error}): restore it") from error
    for line in text.splitlines():
        with contextlib.suppress(RefusedFileError):
            record = parse_json(line, Process)
            processes.append({**_UNKNOWN, **record})
    return processes


def _processes_file(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.processes.jsonl")


def provenance_of(run_dir: Path) -> dict[str, Any]:
    """What is known of where a run, or a committed result, comes from.

    | key | meaning |
    | --- | --- |
    | ebu_version, commit | of the code, each once, in the order in which they trained the run |
    | hardware | processor, its cores, and the graphics card |
    | train_seconds | wall time of all training processes; None if nothing recorded it |
    """
    path = run_dir / PROVENANCE
    if is_there(path):
        try:
            record = read_json(path, Provenance)
            return {key: record[key] for key in Provenance.__annotations__}
        except (OSError, ValueError) as error:
            raise EbuError(f"{path} cannot be read ({error}): restore it") from error
    # Lines of earlier versions may lack the program.
    processes = [each for each in read_processes(run_dir) if each["program"] in ("train.py", "")]
    trained = [each["seconds"] for each in processes if each["program"]]

    def each_once(key: str, separator: str = " ") -> str:
        return separator.join(dict.fromkeys(each[key] for each in processes if each[key]))

    return {
        "ebu_version": each_once("ebu_version"),
        "commit": each_once("commit"),
        "hardware": each_once("hardware", "; "),
        "train_seconds": round(sum(trained), 1) if trained else None,
    }
