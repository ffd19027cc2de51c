"""An update dispatches no more operations, copies and bytes than it did: where no GPU is timed."""

import pytest
import torch

from benchmarks import operations
from ebu.replay import EpisodicReplay

LIMITS = {
    ("ebu", "float32"): (82, 19, 231),
    ("ebu", "bfloat16"): (87, 44, 211),
    ("dqn", "float32"): (77, 15, 228),
    ("dqn", "bfloat16"): (82, 40, 209),
}
"""Operations, copies and megabytes of an update: raise them only for what is worth it."""


@pytest.fixture(scope="module")
def replay() -> EpisodicReplay:
    return operations.memory()


@pytest.mark.parametrize(("name", "precision"), LIMITS)
def test_an_update_does_not_grow(name: str, precision: str, replay: EpisodicReplay) -> None:
    counted = operations.count(name, precision, replay)
    for figure, limit in zip(counted.values(), LIMITS[name, precision], strict=True):
        assert 0 < figure <= limit, counted


def test_operations_copies_and_bytes_by_hand() -> None:
    values = torch.ones(10)
    with operations.Operations() as counted:
        doubled = values.view(2, 5) + values.view(2, 5)
        torch._foreach_copy_([values, torch.zeros(3)], [doubled.view(10), torch.ones(3)])
    # The sum, zeros and ones of 3, and one call that copies two tensors.
    assert (counted.operations, counted.copies) == (4, 2)
    assert counted.bytes == 4 * (3 * 10 + 3 + 3 + (10 + 10 + 3 + 3))
