"""Exploration over a run."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebu.schedules import ExplorationConfig, epsilon_at

PAPER = ExplorationConfig(epsilon_start=1.0, epsilon_end=0.1, epsilon_decay_steps=1_000_000)


@pytest.mark.parametrize(
    ("learning_steps", "epsilon"),
    [
        (0, 1.0),
        (1, 1.0 - 0.9e-6),
        (250_000, 0.775),
        (500_000, 0.55),
        (1_000_000, 0.1),
        (1_000_001, 0.1),
        (2_450_000, 0.1),
    ],
)
def test_the_papers_schedule(learning_steps: int, epsilon: float) -> None:
    assert epsilon_at(PAPER, learning_steps) == pytest.approx(epsilon, rel=1e-12)


@given(start=st.floats(0, 1), end=st.floats(0, 1), decay_steps=st.integers(0, 2_000))
def test_it_moves_one_way_from_start_to_end(start: float, end: float, decay_steps: int) -> None:
    config = ExplorationConfig(
        epsilon_start=start, epsilon_end=end, epsilon_decay_steps=decay_steps
    )
    values = [epsilon_at(config, steps) for steps in range(0, 2_200, 50)]
    assert values[0] == start
    assert values[-1] == pytest.approx(end, abs=1e-12)
    direction = 1 if end >= start else -1
    assert all(direction * (after - before) >= -1e-12 for before, after in pairwise(values))
