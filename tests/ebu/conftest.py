"""Fixtures of several files."""

from collections.abc import Iterator

import pytest

from tests.made_up_runs import open_trainers


@pytest.fixture
def closing() -> Iterator[None]:
    """Close the runs a test has opened."""
    yield
    while open_trainers:
        open_trainers.pop().close()
