"""The first cases of `make faults`."""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults import Case, attempt


@pytest.mark.parametrize(
    ("part", "name", "numbers"),
    [("kills", "dqn", (1,)), ("calls", "a training", (900,)), ("files", "a training", (45, 125))],
)
def test_what_is_killed_fails_or_is_damaged_ends_as_if_nothing_had_happened(
    part: str, name: str, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    happened = Counter[str]()
    for number in numbers:
        met, wrong = attempt(Case(part, name, number), tmp_path, seed=0)
        assert not wrong
        happened += met
    assert happened.total() == 2 * len(numbers)
