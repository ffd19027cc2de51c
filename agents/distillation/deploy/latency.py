"""How long an answer takes: one state at a time, one thread, as a player on a CPU would ask."""

import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import torch

CALLS = 1_000
WARMUP_CALLS = 50

NameT = TypeVar("NameT", bound=Hashable)


class Latency(TypedDict):
    """Microseconds of a call: the median, and what one call in a hundred exceeds."""

    p50_us: float
    p99_us: float


def latencies(
    contestants: Mapping[NameT, Callable[[], object]],
    *,
    calls: int = CALLS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[NameT, Latency]:
    """Time `calls` calls of each contestant, in turns, on one thread of torch.

    In turns, because whatever else the machine does then slows all of them alike: ratios hold where
    the figures themselves do not. Calls to warm up come first and are not timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken: dict[NameT, list[int]] = {name: [] for name in contestants}
        for _ in range(WARMUP_CALLS + calls):
            for name, call in contestants.items():
                started = clock()
                call()
                taken[name].append(clock() - started)
    finally:
        torch.set_num_threads(threads)
    found: dict[NameT, Latency] = {}
    for name, nanoseconds in taken.items():
        p50, p99 = np.percentile(nanoseconds[WARMUP_CALLS:], [50, 99]) / 1_000
        found[name] = {"p50_us": float(p50), "p99_us": float(p99)}
    return found


def hardware() -> str:
    """The processor, how many of its cores this process may use, and the system."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} core{'s' * (cores != 1)}, {platform.system()} {platform.machine()}"
