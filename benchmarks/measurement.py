"""What the benchmarks share: how a time is taken, what is stated with it, where it goes.

A results file is one JSON object: `machine`, `versions` and `settings`, as they were before the
measurement began, then the figures of the benchmark.
"""

import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from itertools import islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ebu.errors import UsageError
from ebu.run.cli import all_cores, parse
from ebu.run.files import write_whole
from ebu.run.hardware import graphics_card, processor
from ebu.run.settings import NotNegative
from envs.games import canonical_game

# Calls before the first one that is timed: caches, lazy initialisation, kernels being chosen.
WARMUP_CALLS = 3


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of every benchmark."""

    seed: NotNegative = 0
    """Seed of everything that is drawn."""
    json: Path | None = None
    """Write settings, machine and all figures to this file."""


SettingsT = TypeVar("SettingsT", bound=BenchmarkSettings)


def run_benchmark(
    settings_type: type[SettingsT],
    measure: Callable[[SettingsT], Mapping[str, Any]],
    table: Callable[[Mapping[str, Any]], str],
    *,
    description: str,
    check: Callable[[SettingsT], SettingsT] = lambda settings: settings,
    packages: Sequence[str] = (),
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Measure by the command line's settings, print the table and write the results file.

    | argument | meaning |
    | --- | --- |
    | measure, table | settings → figures → Markdown |
    | check | settings that are resolved; raises `UsageError` for what cannot be measured |
    | packages | what ours is compared with; their versions are stated |
    | conditions | stated with machine, versions and settings |
    """
    settings = parse_settings(settings_type, description)
    settings = check(settings)
    context = {**state(settings, packages), **(conditions or {})}
    figures = measure(settings)
    for title, fields in context.items():
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in fields.items()))
    print(f"\n{table(figures)}")
    if settings.json:
        write_json(settings.json, {**context, **figures})


def parse_settings(settings_type: type[SettingsT], description: str) -> SettingsT:
    """Settings from the command line. Raises `UsageError`, also if --json cannot be written."""
    module = Path(inspect.getfile(settings_type)).stem
    settings = parse(
        settings_type, sys.argv[1:], prog=f"python -m benchmarks.{module}", description=description
    )
    if settings.json is not None:
        path, folder = settings.json, settings.json.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"--json {path}: there is no such folder to write to")
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise UsageError(f"--json {path}: no file can be written there; choose another name")
    return settings


def state(settings: BenchmarkSettings, packages: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The hardware, what else it is doing, the versions and the settings of a measurement."""
    machine = {
        "cpu": processor(),
        "cores": all_cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpu": graphics_card(),
        "system": platform.platform(),
        "load_average_before": os.getloadavg()[0],
    }
    versions = {"python": platform.python_version()}
    for package in ("ebu", "torch", "numpy", "gymnasium", "ale-py", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    chosen = asdict(settings)
    del chosen["json"]
    return {"machine": machine, "versions": versions, "settings": chosen}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a results file. Raises `EbuError` if it cannot be written."""
    write_whole(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def times(
    call: Callable[..., object],
    repetitions: int,
    device: torch.device,
    arguments: Iterable[tuple[Any, ...]] | None = None,
) -> list[float]:
    """Seconds of each of `repetitions` calls, the work they leave to the device included.

    arguments: those of each call, made outside of the time; one tuple for every call, the
    `WARMUP_CALLS` untimed ones in front included.
    """
    seconds = []
    for given in islice(arguments or repeat(()), WARMUP_CALLS + repetitions):
        _finish(device)
        started = time.perf_counter()
        call(*given)
        _finish(device)
        seconds.append(time.perf_counter() - started)
    return seconds[WARMUP_CALLS:]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest of several measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def median_and_p95(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile of many measurements."""
    return {"median": statistics.median(values), "p95": float(np.percentile(values, 95))}


def ranged(values: Mapping[str, float], form: str = ".2f") -> str:
    """A spread as `median (min-max)`."""
    median, low, high = (format(values[key], form) for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def say(line: str) -> None:
    """Tell how far the measurement is."""
    print(line, file=sys.stderr, flush=True)


def atari_game(name: str) -> str:
    """The id of an Atari game. Raises `UsageError` if there is none of this name."""
    try:
        return canonical_game(name)
    except ValueError as error:
        raise UsageError(f"--game: {error}") from error


def require_installed(module: str, name: str) -> None:
    """`UsageError` if what we are compared with is not installed."""
    if util.find_spec(module) is None:
        raise UsageError(f"{name} is not installed: pip install -c constraints.txt -e '.[bench]'")
