"""What the benchmarks share: how a time is taken, what is stated beside it, where it goes.

A results file is one JSON object: `machine`, `versions` and `settings`, as they were before the
measurement began, then the figures of the benchmark.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata, util
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebu.errors import EbuError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Calls before the first one that is timed: caches, lazy initialisation, kernels being chosen.
WARMUP_CALLS = 3


def machine() -> dict[str, Any]:
    """The hardware, as far as the system tells, and what else it was doing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load_average_before": os.getloadavg()[0],
    }


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """The versions of what is measured; `packages` are what it is compared with."""
    found = {"python": platform.python_version()}
    for package in ("ebu", "torch", "numpy", "gymnasium", "ale-py", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def stated(settings: "DataclassInstance", packages: Iterable[str] = ()) -> dict[str, Any]:
    """What a results file begins with; to be asked for before the measurement."""
    chosen = asdict(settings)
    del chosen["json"]
    return {"machine": machine(), "versions": versions(packages), "settings": chosen}


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


def usual_and_slow(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile of many measurements."""
    return {"median": statistics.median(values), "p95": float(np.percentile(values, 95))}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines: Iterator[Sequence[str]] = chain((header, ["---"] * len(header)), rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def say(line: str) -> None:
    """Tell how far the measurement is."""
    print(line, file=sys.stderr, flush=True)


def publish(
    context: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, Any],
    table: str,
    path: Path | None,
) -> None:
    """Print what was measured under which conditions, and write both to a results file.

    context: tables of single values, of `stated` and others. Raises `EbuError` if the file
    cannot be written.
    """
    for title, fields in context.items():
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in fields.items()))
    print(f"\n{table}")
    if path:
        text = json.dumps({**context, **figures}, indent=2, allow_nan=False)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise EbuError(f"--json {path}: {error.strerror or error}") from error


def require_at_least(least: int, settings: object, *names: str) -> None:
    """`UsageError` unless these settings, or all values of one that holds several, are as large."""
    for name in names:
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or min(values) < least:
            given = ", ".join(map(str, values)) or "empty"
            raise UsageError(f"--{name.replace('_', '-')} is {given}; give {least} or more")


def require_writable(path: Path | None) -> None:
    """`UsageError` if a results file cannot be written there, before it has cost any time."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--json {path}: there is no such folder to write to")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"--json {path}: no file can be written there; choose another name")


def require_installed(module: str, name: str) -> None:
    """`UsageError` if what we are compared with is not installed."""
    if util.find_spec(module) is None:
        raise UsageError(f"{name} is not installed: pip install -c constraints.txt -e '.[bench]'")
