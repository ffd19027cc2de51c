"""Record the processes of a run: which code ran, where, for how long, and how it ended."""

import json
import os
from pathlib import Path
from typing import Any

from ebu.errors import EbuError

# What lines of earlier versions may lack.
_UNKNOWN = {"program": "", "ebu_version": "", "commit": "", "hardware": ""}


def processes_file(run_dir: Path) -> Path:
    """Path of the list of a run's processes, next to its directory."""
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
                processes.append({**_UNKNOWN, **record})
            except (ValueError, KeyError, TypeError):
                continue
    return processes
