"""The ways to the same targets that are timed against each other."""

import pytest
import torch

from benchmarks import target_speed
from ebu.errors import EbuError

CPU = torch.device("cpu")


def episode(terminated: bool) -> target_speed.Episode:
    """Three steps of 18 actions of which only two have a value."""
    next_values = torch.zeros(3, target_speed.NUM_ACTIONS)
    next_values[0, :2] = torch.tensor([1.0, 3.0])
    next_values[1, :2] = torch.tensor([2.0, 4.0])
    next_values[2, :2] = torch.tensor([5.0, 6.0])
    return target_speed.Episode(
        rewards=torch.tensor([0.0, 1.0, -1.0]),
        next_values=next_values,
        actions=torch.tensor([1, 0, 1]),
        terminated=torch.tensor(terminated),
        beta=0.5,
    )


@pytest.mark.parametrize(
    ("terminated", "last"),
    [(True, -1.0), (False, -1.0 + 0.99 * 6.0)],
)
def test_the_targets_by_hand(terminated: bool, last: float) -> None:
    given = episode(terminated)
    # a_3 = 1 is taken after s_2: its entry 4 becomes (last + 4) / 2, beside an entry of 2.
    middle = 1.0 + 0.99 * max(2.0, 0.5 * last + 0.5 * 4.0)
    # a_2 = 0 after s_1: its entry 1 becomes (middle + 1) / 2, beside an entry of 3.
    first = 0.99 * max(3.0, 0.5 * middle + 0.5 * 1.0)
    assert target_speed.WAYS["used"](given).tolist() == pytest.approx([first, middle, last])
    assert target_speed.difference(given) < 1e-7


@pytest.mark.parametrize("learners", [1, 4])
def test_all_ways_agree(learners: int) -> None:
    given = target_speed.made_up(200, learners, 5, CPU)
    shape = (200,) if learners == 1 else (learners, 200)
    assert {way(given).shape for way in target_speed.WAYS.values()} == {shape}
    assert target_speed.difference(given) < target_speed.LARGEST_DIFFERENCE


def test_ways_that_do_not_agree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = target_speed.Settings(steps=(20,), learners=(2,), repetitions=1, device="cpu")
    scan = target_speed.WAYS["scan"]
    monkeypatch.setitem(target_speed.WAYS, "scan", lambda given: scan(given) * 1.001)
    with pytest.raises(EbuError, match=r"T=20, K=2 differ by"):
        target_speed.measure(settings)
