"""How the tests are run."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

# Machines pause; a property is not wrong because one of its examples was slow.
hypothesis.settings.register_profile("ebu", deadline=None)
hypothesis.settings.load_profile("ebu")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave files to the system: what the tests write need not survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first: with several processes all end at about the same time."""
    items.sort(key=lambda item: not item.path.name.startswith(("test_resume", "test_train.py")))
