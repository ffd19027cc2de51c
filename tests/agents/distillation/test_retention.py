"""What interval a retention has."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from agents.distillation.report.rows import mean_of, retention_interval
from ebu.statistics import mean_interval

games = st.lists(st.integers(-5, 5), min_size=4, max_size=6)
good_games = games.map(lambda scores: [60 + score for score in scores])
"""Of a teacher that can be told from random play."""


def test_without_scatter_it_is_the_point() -> None:
    assert retention_interval([8, 8], [12, 12], [2, 2]) == pytest.approx((0.6, 0.6), abs=1e-9)


def test_with_scatter_of_the_student_alone_it_is_students_t() -> None:
    student = [60.0, 75, 66, 80]
    low, high = mean_interval(np.array(student)) or (math.nan, math.nan)
    found = retention_interval(student, [102, 102], [2, 2])
    assert found == pytest.approx(((low - 2) / 100, (high - 2) / 100))


def test_scatter_of_teacher_and_random_play_widens_it() -> None:
    student = 6 * [60.0, 75, 66, 79]
    alone, teacher, both = (
        retention_interval(student, 12 * [100 - of_teacher, 100 + of_teacher], 12 * [-r, r])
        for of_teacher, r in ((0.0, 0.0), (9, 0), (9, 9))
    )
    assert alone is not None
    assert teacher is not None
    assert both is not None
    assert both[0] < teacher[0] < alone[0] < 0.7 < alone[1] < teacher[1] < both[1]


@given(st.lists(st.integers(-50, 90), min_size=2, max_size=6), good_games, games)
def test_at_its_ends_the_difference_is_just_what_chance_may_make_of_it(
    student: list[int], teacher: list[int], random: list[int]
) -> None:
    found = retention_interval(student, teacher, random)
    assert found is not None
    means = [mean_of(scores) for scores in (student, teacher, random)]
    for share in found:
        weights = (1, -share, share - 1)
        parts = [w**2 * m.variance for w, m in zip(weights, means, strict=True) if m is not None]
        gap = sum(w * m.value for w, m in zip(weights, means, strict=True) if m is not None)
        variance = sum(parts)
        if variance == 0:
            assert gap == pytest.approx(0, abs=1e-6)
            continue
        freedoms = [m.freedom for m in means if m is not None]
        freedom = variance**2 / sum(p**2 / f for p, f in zip(parts, freedoms, strict=True))
        p_value = 2 * scipy.stats.t.sf(abs(gap) / math.sqrt(variance), freedom)
        assert p_value == pytest.approx(0.05, rel=1e-3)


@given(
    st.lists(st.integers(-50, 90), min_size=2, max_size=6),
    good_games,
    games,
    st.floats(0.1, 10),
    st.floats(-100, 100),
)
def test_it_does_not_depend_on_the_unit_or_the_zero_of_scores(
    student: list[int], teacher: list[int], random: list[int], unit: float, zero: float
) -> None:
    def scaled(scores: list[int]) -> list[float]:
        return [unit * score + zero for score in scores]

    found = retention_interval(student, teacher, random)
    assert found is not None
    other = retention_interval(scaled(student), scaled(teacher), scaled(random))
    assert other == pytest.approx(found, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "scores",
    [
        ([8.0], [12.0, 13], [2.0, 3]),
        ([8.0, 9], [12.0], [2.0, 3]),
        ([8.0, 9], [12.0, 13], [2.0]),
        # The teacher cannot be told from random play, or is worse.
        ([8.0, 9], [2.0, 30], [2.0, 3]),
        ([8.0, 9], [2.0, 3], [12.0, 13]),
        ([8.0, 9], [2.0, 2], [2.0, 2]),
    ],
)
def test_there_is_none_where_every_share_is_possible(scores: tuple[list[float], ...]) -> None:
    assert retention_interval(*scores) is None


def test_it_covers_the_true_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered, trials = 0, 400
    for _ in range(trials):
        # Thirty skewed scores of each, as games give them.
        student, teacher, random = (
            (rng.exponential(scale, 30) + least).tolist()
            for scale, least in ((3, 6), (4, 6), (1, 0))
        )
        low, high = retention_interval(student, teacher, random) or (math.nan, math.nan)
        covered += low <= (9 - 1) / (10 - 1) <= high
    # Four standard errors of a share of 400 trials.
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)
