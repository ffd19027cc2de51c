"""The interval of a share of mean scores, for instance of a retention."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ebu.statistics import mean_interval, share_interval

games = st.lists(st.integers(-5, 5), min_size=4, max_size=6)
good_games = games.map(lambda scores: [60 + score for score in scores])
"""Of a teacher that can be told from random play."""


def test_with_scatter_of_the_scores_alone_it_is_students_t() -> None:
    assert share_interval([8, 8], [12, 12], [2, 2]) == pytest.approx((0.6, 0.6), abs=1e-9)
    student = [60.0, 75, 66, 80]
    low, high = mean_interval(np.array(student)) or (math.nan, math.nan)
    found = share_interval(student, [102, 102], [2, 2])
    assert found == pytest.approx(((low - 2) / 100, (high - 2) / 100))


@given(
    st.lists(st.integers(-50, 90), min_size=2, max_size=6),
    good_games,
    games,
    st.floats(0.1, 10),
    st.floats(-100, 100),
)
def test_at_its_ends_the_difference_is_just_what_chance_may_make_of_it(
    student: list[int], teacher: list[int], random: list[int], unit: float, zero: float
) -> None:
    samples = student, teacher, random
    found = share_interval(*samples)
    assert found is not None
    for share in found:
        weights = np.array([1, -share, share - 1])
        parts = weights**2 * [np.var(sample, ddof=1) / len(sample) for sample in samples]
        gap, variance = weights @ [np.mean(sample) for sample in samples], parts.sum()
        if variance == 0:
            assert gap == pytest.approx(0, abs=1e-6)
            continue
        freedom = variance**2 / (parts**2 / [len(sample) - 1 for sample in samples]).sum()
        p_value = 2 * scipy.stats.t.sf(abs(gap) / math.sqrt(variance), freedom)
        assert p_value == pytest.approx(0.05, rel=1e-3)
    # Neither the unit nor the zero of scores matters.
    scaled = ([unit * score + zero for score in sample] for sample in samples)
    assert share_interval(*scaled) == pytest.approx(found, rel=1e-4, abs=1e-4)


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
    assert share_interval(*scores) is None


def test_it_covers_the_true_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered, trials = 0, 400
    for _ in range(trials):
        # Thirty skewed scores of each, as games give them.
        samples = (
            (rng.exponential(scale, 30) + least).tolist()
            for scale, least in ((3, 6), (4, 6), (1, 0))
        )
        low, high = share_interval(*samples) or (math.nan, math.nan)
        covered += low <= (9 - 1) / (10 - 1) <= high
    # Four standard errors of a share of 400 trials.
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)
