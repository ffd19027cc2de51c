"""Compute without subnormal numbers, in which processors are many times slower."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flush_subnormals() -> Iterator[None]:
    """Let this thread, and those it starts, take numbers too small for full precision as 0.

    Below 1.2e-38 for float32. Threads that are there already keep their own setting.
    """
    smallest = sys.float_info.min
    flushed = smallest / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
