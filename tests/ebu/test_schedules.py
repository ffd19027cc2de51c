"""Exploration over a run."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebu.schedules import ExplorationConfig, epsilon_at

PAPER = ExplorationConfig(epsilon_start=1.0, epsilon_end=0.1, epsilon_decay_steps=1_000_000)


@pytest.mark.parametrize(
    ("agent_steps", "epsilon"),
    [
        (0, 1.0),
        (50_000, 1.0),
        (50_001, 1.0 - 0.9e-6),
        (300_000, 0.775),
        (550_000, 0.55),
        (1_050_000, 0.1),
        (1_050_001, 0.1),
        (2_500_000, 0.1),
    ],
)
def test_the_papers_schedule(agent_steps: int, epsilon: float) -> None:
    assert epsilon_at(PAPER, agent_steps, 50_000) == pytest.approx(epsilon, rel=1e-12)


def test_it_begins_with_learning() -> None:
    config = ExplorationConfig(epsilon_start=0.8, epsilon_end=0.2, epsilon_decay_steps=10)
    of_runs = [[epsilon_at(config, start + step, start) for step in range(12)] for start in (0, 70)]
    assert of_runs[0] == of_runs[1]
    assert epsilon_at(config, 69, 70) == 0.8


@given(
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    decay_steps=st.integers(0, 2_000),
    learning_starts=st.integers(0, 1_000),
)
def test_it_goes_one_way_from_start_to_end(
    start: float, end: float, decay_steps: int, learning_starts: int
) -> None:
    config = ExplorationConfig(
        epsilon_start=start, epsilon_end=end, epsilon_decay_steps=decay_steps
    )
    values = [epsilon_at(config, steps, learning_starts) for steps in range(0, 3_200, 50)]
    assert values[0] == start
    assert values[-1] == pytest.approx(end, abs=1e-12)
    direction = 1 if end >= start else -1
    assert all(direction * (after - before) >= -1e-12 for before, after in pairwise(values))


def test_no_decay_is_a_step_behind_the_start_of_learning() -> None:
    config = ExplorationConfig(epsilon_start=1.0, epsilon_end=0.1, epsilon_decay_steps=0)
    assert epsilon_at(config, 5, 5) == 1.0
    assert epsilon_at(config, 6, 5) == pytest.approx(0.1)
