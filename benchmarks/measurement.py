"""How the benchmarks take times, interleave rounds, report, and read their command line.

A results file is one JSON object: `machine`, `versions` and `settings` as they were before the
measurement, then the benchmark's figures.
"""

import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata, util
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch

from ebu.errors import UsageError
from ebu.run.cli import parse
from ebu.run.files import write_whole
from ebu.run.hardware import all_cores, graphics_card, processor
from ebu.run.hints import install_command
from ebu.run.machine import device_named, prepare_torch
from ebu.run.settings import Device, NotNegative, Positive
from ebu.targets import _sweep_kernel
from envs.games import canonical_game

# Untimed calls first: caches, lazy initialisation, the choice of kernels.
WARMUP_CALLS = 3


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of every benchmark."""

    seed: NotNegative = 0
    """Seed of everything that is drawn."""
    json: Path | None = None
    """Write settings, machine and all figures to this file."""

    def checked(self) -> Self:
        """These settings, resolved. Raises `UsageError` for what cannot be measured."""
        return self


@dataclass(frozen=True)
class GameSettings(BenchmarkSettings):
    """Settings of a benchmark on a game."""

    game: str = "pong"
    """An Atari game."""

    def checked(self) -> Self:
        """With the game's id."""
        try:
            return replace(self, game=canonical_game(self.game))
        except ValueError as error:
            raise UsageError(f"--game: {error}") from error


@dataclass(frozen=True)
class DeviceSettings(BenchmarkSettings):
    """Settings of a benchmark of tensors."""

    threads: Positive = 1
    """Threads of torch."""
    device: Device = "auto"
    """auto, cpu or cuda: where the tensors lie."""

    def prepare(self) -> torch.device:
        """Set torch up for these settings; return the device. Raises `UsageError`."""
        device = device_named(self.device)
        prepare_torch(device, self.threads)
        return device


SettingsT = TypeVar("SettingsT", bound=BenchmarkSettings)
ResultT = TypeVar("ResultT")


def run_benchmark(
    settings_type: type[SettingsT],
    measure: Callable[[SettingsT], Mapping[str, Any]],
    table: Callable[[Mapping[str, Any]], str],
    *,
    packages: Sequence[str] = (),
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Measure by the command line's settings, print the table and write the results file.

    | argument | meaning |
    | --- | --- |
    | measure, table | settings → figures → Markdown |
    | packages | packages we compare with, whose versions are reported |
    | conditions | reported with machine, versions and settings |
    """
    settings = parse_settings(settings_type)
    context = {**describe(settings, packages), **(conditions or {})}
    figures = measure(settings)
    for title, fields in context.items():
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in fields.items()))
    print(f"\n{table(figures)}")
    if settings.json:
        write_json(settings.json, {**context, **figures})


def parse_settings(settings_type: type[SettingsT]) -> SettingsT:
    """Checked settings from the command line. Raises `UsageError`."""
    module = sys.modules[settings_type.__module__]
    settings = parse(
        settings_type,
        sys.argv[1:],
        prog=f"python -m benchmarks.{Path(inspect.getfile(settings_type)).stem}",
        description=(module.__doc__ or "").partition("\n")[0],
    )
    if settings.json is not None:
        path, folder = settings.json, settings.json.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"--json {path}: the folder does not exist; create it first")
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise UsageError(f"--json {path}: not a writable file; choose another name")
    return settings.checked()


def describe(
    settings: BenchmarkSettings, packages: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """The hardware and its load, the versions and the settings of a measurement."""
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
    """Seconds of each of `repetitions` calls, their work on the device included.

    arguments: one tuple for every call, the `WARMUP_CALLS` untimed ones included.
    """
    seconds = []
    for given in islice(arguments or repeat(()), WARMUP_CALLS + repetitions):
        _synchronize(device)
        started = time.perf_counter()
        call(*given)
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[WARMUP_CALLS:]


def targets_by(device: torch.device) -> str:
    """What computes backward targets on a device: recursion, kernel, or scan without Triton."""
    if device.type == "cpu":
        return "recursion"
    return "scan" if _sweep_kernel(device) is None else "kernel"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    tasks: Mapping[str, Callable[[int], ResultT]], rounds: int, minutes: float | None = None
) -> list[dict[str, ResultT]]:
    """Results of rounds (A B C A B C ...) of tasks, which are given the round's number.

    A machine's speed drifts: only measurements of one round are compared. With `minutes`, no round
    but the first starts that would end later, were it as long as the longest before.
    """
    results: list[dict[str, ResultT]] = []
    began = time.monotonic()
    longest = 0.0
    for number in range(rounds):
        started = time.monotonic()
        if results and minutes and started + longest > began + 60 * minutes:
            say(f"no time for round {number + 1}")
            break
        results.append({})
        for name, task in tasks.items():
            say(f"round {number + 1}/{rounds}  {name}")
            results[-1][name] = task(number)
        longest = max(longest, time.monotonic() - started)
    return results


def spread(values: Iterable[float]) -> dict[str, float]:
    """Least, median and greatest of several measurements."""
    listed = list(values)
    return {"min": min(listed), "median": statistics.median(listed), "max": max(listed)}


def medians(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each entry over tables with the same keys."""
    listed = list(tables)
    return {key: statistics.median([each[key] for each in listed]) for key in listed[0]}


def median_and_p95(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile of many measurements."""
    return {"median": statistics.median(values), "p95": float(np.percentile(values, 95))}


def ranged(values: Mapping[str, float], form: str = ".2f") -> str:
    """A spread as `median (min-max)`."""
    median, low, high = (format(values[key], form) for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def say(line: str) -> None:
    """Report progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def require_installed(module: str, name: str) -> None:
    """Raise `UsageError` if a package we compare with is not installed."""
    if util.find_spec(module) is None:
        raise UsageError(f"{name} is not installed: {install_command('bench')}")
