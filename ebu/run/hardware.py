"""What a run or a measurement runs on."""

import os
import platform
import sys
from pathlib import Path

from ebu.run.control_groups import ROOT, control_groups

# What a driver for NVIDIA's, Windows', AMD's and small NVIDIA devices makes; one is enough.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")
_QUOTA_FILES = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}
"""Quota and period of a control group, by version."""


def spared_threads(cores: int, processes: int = 1) -> int:
    """Threads of each of some processes that leave one of the cores to other programs.

    PyTorch's threads wait for one another in every layer: where another program takes the core of
    one, all wait, and several threads are many times slower than one.
    """
    return max(1, (cores - 1) // processes)


def all_cores(root: Path = ROOT) -> int:
    """Processor cores that this process may use.

    No more than the control groups of a container or a batch job allow, rounded down: threads
    above that would wait for one another.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    shares = [_share(group, version) for group, version in control_groups("cpu", root)]
    return max(1, min([cores, *(int(share) for share in shares if share is not None)]))


def _share(group: Path, version: int) -> float | None:
    """The cores that a control group may use at a time; None without a limit."""
    try:
        texts = [(group / name).read_text() for name in _QUOTA_FILES[version]]
        quota, period = " ".join(texts).split()
        microseconds = int(quota)  # "max" is no number: no limit
        return microseconds / int(period) if microseconds > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def processor() -> str:
    """The model of the processor, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def graphics_card() -> str | None:
    """The name of the CUDA device; None without one."""
    if sys.platform == "linux" and not any(map(os.path.exists, _DRIVERS)):
        # PyTorch would take seconds to say so.
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def hardware() -> str:
    """The processor, how many of its cores this process may use, and the system."""
    cores = all_cores()
    system = f"{platform.system()} {platform.machine()}"
    return f"{processor()}, {cores} core{'s' * (cores != 1)}, {system}"
