"""Fixtures of several files."""

import resource
from collections.abc import Iterator

import pytest

from tests.made_up_runs import open_trainers


@pytest.fixture
def closing() -> Iterator[None]:
    """Close the runs a test has opened."""
    yield
    while open_trainers:
        open_trainers.pop().close()


@pytest.fixture
def largest_file() -> Iterator[None]:
    """No file may grow beyond 5,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
