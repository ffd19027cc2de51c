"""What a run or a measurement runs on."""

import os
import platform
import sys
from pathlib import Path

# What a driver for NVIDIA's, Windows', AMD's and small NVIDIA devices makes; one is enough.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")


def all_cores() -> int:
    """Processor cores that this process may use: the threads of `--threads 0`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
