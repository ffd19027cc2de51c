"""How the tests are run."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# Signals as in a terminal, also under nohup or in the background of a script: processes that tests
# start inherit what is ignored.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


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
