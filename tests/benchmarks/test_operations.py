"""An update dispatches no more operations, copies and bytes than it did: where no GPU is timed."""

import pytest
import torch

from benchmarks import operations
from ebu.replay import EpisodicReplay

LIMITS = {
    ("ebu", "float32"): (111, 27, 136),
    ("ebu", "bfloat16"): (120, 55, 108),
    ("dqn", "float32"): (78, 15, 123),
    ("dqn", "bfloat16"): (83, 40, 101),
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
        selected = doubled.index_select(0, torch.tensor([1]))
    # The sum, zeros and ones of 3, one call that copies two tensors, and a selection.
    assert (counted.operations, counted.copies) == (5, 2)
    assert selected.shape == (1, 5)
    assert counted.bytes == 4 * (3 * 10 + 3 + 3 + (10 + 10 + 3 + 3) + 2 * 5) + 8
