"""Starts the ranks of a run as torchrun does, without the seconds that torchrun takes itself."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebu.run.checkpoint_state import read_state

ROOT = Path(__file__).parents[1]
SECONDS = 300


@contextmanager
def started(
    words: Sequence[str], world_size: int = 2, *, cwd: Path = ROOT
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of `python …`, one for each rank; killed where they are left."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def ended(ranks: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """The exit code and the standard error of each rank."""
    errors = [rank.communicate(timeout=SECONDS)[1] for rank in ranks]
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


def run_ranks(words: Sequence[str], world_size: int = 2) -> list[tuple[int, str]]:
    """Run `python …` as so many ranks to their end."""
    with started(words, world_size) as ranks:
        return ended(ranks)


def states(checkpoint: Path) -> list[dict[str, Any]]:
    """The state of each rank in a checkpoint."""
    return [read_state(part) for part in sorted(checkpoint.glob("rank-*"))]
