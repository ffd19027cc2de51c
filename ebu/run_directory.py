"""A run's directory: what it was started with, and that only one process trains in it."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ebu.durable import replace_whole
from ebu.errors import EbuError, UsageError

CONFIG = "config.json"


def read_config(run_dir: Path) -> dict[str, Any]:
    """What a run was started with: {"settings": …, "environment": …}.

    Raises `UsageError` if this is no run directory, `EbuError` if its config.json is damaged.
    """
    path = run_dir / CONFIG
    # Path.is_file raises where a directory on the way may not be entered.
    if not os.path.isfile(path):
        raise UsageError(f"{run_dir} is not a run directory: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text())
        if not isinstance(config["settings"], dict) or not isinstance(config["environment"], dict):
            raise TypeError("not a run's configuration")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EbuError(
            f"{path} cannot be read ({error}): restore it, or start anew in another --run-dir"
        ) from error
    return dict(config)


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write config.json, whole or not at all. Raises `OSError` where that fails."""
    replace_whole(run_dir / CONFIG, json.dumps(config, indent=2).encode())


def open_run_directory(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    may_change: frozenset[str],
    may_grow: frozenset[str],
) -> IO[str]:
    """Create a run's directory, or check that it can be continued with these settings.

    | argument | meaning |
    | --- | --- |
    | config | {"settings": flat settings, "environment": …} as read_config returns |
    | may_change | settings that change nothing in the run |
    | may_grow | settings that may grow from one start to the next |

    Returns the open lock file: while it is open no other process can train here.
    Raises `UsageError` if the path cannot hold a run, is in use, or was started with others.
    """
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise UsageError(f"--run-dir {run_dir} is a file: choose a directory")
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / CONFIG).exists() and any(
            entry.name not in ("lock", f".{CONFIG}") for entry in run_dir.iterdir()
        ):
            raise UsageError(
                f"--run-dir {run_dir} holds files that are not a run's: choose another directory"
            )
        lock = (run_dir / "lock").open("w")
    except OSError as error:
        raise UsageError(
            f"--run-dir {run_dir} cannot be written: {error.strerror}; choose another directory"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(
            f"another process is training in {run_dir}: stop it or choose another --run-dir"
        ) from None
    try:
        if (run_dir / CONFIG).exists():
            _check(run_dir, config, may_change, may_grow)
        write_config(run_dir, config)
    except OSError as error:
        lock.close()
        raise EbuError(
            f"{run_dir / CONFIG} cannot be written: {error.strerror}; free space or choose "
            "another --run-dir"
        ) from error
    except EbuError:
        lock.close()
        raise
    return lock


def _check(
    run_dir: Path, config: Mapping[str, Any], may_change: frozenset[str], may_grow: frozenset[str]
) -> None:
    before = read_config(run_dir)
    old = {**before["settings"], **before["environment"]}
    # As they will read back: a tuple is a list in JSON.
    new = json.loads(json.dumps({**config["settings"], **config["environment"]}))
    differing = []
    for name in sorted(old.keys() | new.keys()):
        was, is_now = old.get(name), new.get(name)
        grew = name in may_grow and isinstance(was, int) and is_now > was
        if was == is_now or name in may_change or grew:
            continue
        note = " (may only grow)" if name in may_grow else ""
        differing.append(f"{name} was {was}, is {is_now}{note}")
    if differing:
        raise UsageError(
            f"{run_dir} was started with other settings: {'; '.join(differing)}. "
            "Repeat them to continue it, or choose another --run-dir"
        )
