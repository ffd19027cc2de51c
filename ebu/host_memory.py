"""Memory: how much is free, what does not fit, huge pages, one heap for all threads."""

import contextlib
import ctypes
import math
import mmap
import os
import platform
from pathlib import Path

import torch
from torch import Tensor

from ebu.errors import UsageError
from ebu.run.control_groups import ROOT, control_groups

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_OWN_PAGES = 16 * 2**20
"""Bytes from which an allocation gets pages of its own: above what an update allocates."""
_FREE_KEPT = 4 * _OWN_PAGES
"""Free bytes at the end of the heap that are not given back, to be asked for again at once."""

_GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
"""Limit and use of a control group, by version."""


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device, or None where it is unknown.

    On the host: the smallest of what the kernel calls available and what the control
    groups of this process leave.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_kernel(Path("/proc/meminfo")), *_control_groups(ROOT)]
    known = [limit for limit in limits if limit is not None]
    if known:
        return max(0, min(known))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def refuse_oversized_replay(
    capacity: int, needed: int, smallest: int, device: torch.device
) -> None:
    """UsageError if a replay memory of `needed` bytes does not fit on the device.

    smallest: the least capacity that works at all, below which no advice is given.
    """
    available = available_bytes(device)
    if available is None or needed <= available:
        return
    # Room for the rest of the program, and a round number.
    fitting = capacity * available * 9 // (needed * 10)
    fitting -= fitting % 10 ** max(0, len(str(fitting)) - 2)
    advice = (
        f"lower --replay-capacity to at most {fitting}"
        if fitting >= smallest
        else "free some memory"
    )
    raise UsageError(
        f"a replay of {capacity:,} transitions needs {needed / 1e9:.2f} GB but "
        f"{available / 1e9:.2f} GB are available on {device.type}: {advice}"
    )


def unfilled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of any content; on the host in huge pages, as far as the system has them.

    Frames drawn from all over gigabytes are found a fifth faster in pages of 2 MB, and filling
    them takes a five-hundredth of the page faults.
    """
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE)
    with contextlib.suppress(OSError):  # A kernel built without them.
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def share_one_heap() -> None:
    """Let all threads allocate from one heap without the largest blocks, where there is glibc.

    Every evaluation, film and checkpoint has threads of its own. Each would take one of many heaps,
    and leave it larger than it was: the resident memory of a long run would creep up. So it would
    with large blocks that come and go between small ones that stay.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES)
        library.mallopt(_M_TRIM_THRESHOLD, _FREE_KEPT)


def _kernel(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _control_groups(root: Path) -> list[int]:
    """What each control group above this process leaves."""
    left = []
    for group, version in control_groups("memory", root):
        amount = _group_leaves(group, *_GROUP_FILES[version])
        if amount is not None:
            left.append(amount)
    return left


def _group_leaves(directory: Path, limit_name: str, usage_name: str) -> int | None:
    try:
        limit = int((directory / limit_name).read_text())  # "max" is no number: no limit
        usage = int((directory / usage_name).read_text())
        statistics = (directory / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    # The system reclaims file pages that were not used lately when memory is short.
    fields = dict(zip(statistics[::2], statistics[1::2], strict=False))
    return limit - usage + int(fields.get("inactive_file", 0))
