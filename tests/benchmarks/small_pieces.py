"""Pieces that take no time, fail, hang, crash or lose their device; test_pieces.py supervises them.

Run as `python -m tests.benchmarks.small_pieces PATH TIME NAMES...`.
"""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks.pieces import Figures, Piece, work


def works() -> Iterator[Figures]:
    yield {"first": 1}
    warnings.warn("slow today\nand more", stacklevel=2)
    yield {"second": 2.5, "process": os.getpid()}


def fails() -> Iterator[Figures]:
    yield {"before": 1}
    raise ValueError("\n".join(f"line {number}" for number in range(300)))


def loses_its_device() -> Iterator[Figures]:
    yield from ()
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def hangs() -> Iterator[Figures]:
    yield {"before": 1}
    time.sleep(600)


def crashes() -> Iterator[Figures]:
    print("on my way", flush=True)
    yield {"before": 1}
    os._exit(7)


PIECES = [
    Piece("works", 60, works),
    Piece("fails", 60, fails),
    Piece("works after a failure", 60, works),
    Piece("loses its device", 60, loses_its_device),
    Piece("hangs", 1, hangs),
    Piece("crashes", 60, crashes),
    Piece("works at the end", 60, works),
]

if __name__ == "__main__":
    path, began, *names = sys.argv[1:]
    sys.exit(work(PIECES, names, Path(path), float(began)))
