"""Averages between two log lines."""

import torch

from agents.log_averages import Averages


def test_averages_by_hand() -> None:
    averages = Averages(("one", "other"), torch.device("cpu"))
    assert averages.take() == {}
    averages.add(torch.tensor(1.0), torch.tensor(-2.0))
    averages.add(torch.tensor(2.0), torch.tensor(6.0))
    assert averages.take() == {"one": 1.5, "other": 2.0}
    assert averages.take() == {}
    averages.add(torch.tensor(5.0), torch.tensor(7.0))

    other = Averages(("one", "other"), torch.device("cpu"))
    other.load_state_dict(averages.state_dict())
    other.add(torch.tensor(7.0), torch.tensor(7.0))
    assert other.take() == {"one": 6.0, "other": 7.0}
    assert averages.take() == {"one": 5.0, "other": 7.0}
