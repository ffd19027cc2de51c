"""How the tests are run."""

import hypothesis
import pytest

# Machines pause; a property is not wrong because one of its examples was slow.
hypothesis.settings.register_profile("ebu", deadline=None)
hypothesis.settings.load_profile("ebu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first: with several processes all end at about the same time."""
    items.sort(key=lambda item: not item.path.name.startswith(("test_resume", "test_train.py")))
