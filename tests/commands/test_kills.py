"""The first cases of `make faults`."""

import time
from pathlib import Path

from tests.faults import faults


def test_what_is_killed_or_fails_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    happened, wrong = faults(["ebu"], range(1), 0, time.monotonic() + 300, tmp_path)
    assert not wrong
    assert happened["cases"] == 1
    assert happened["kills"] + happened["errors"] >= 1
