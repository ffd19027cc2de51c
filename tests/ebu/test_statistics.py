"""Statistics of scores: by hand, as properties, and by how often their intervals cover."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ebu.statistics import (
    difference_interval,
    even_out,
    human_normalised,
    interquartile_mean,
    mean_interval,
    mean_median_iqm,
    performance_profile,
    probability_of_improvement,
    relative_score,
    stratified_bootstrap_interval,
)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    # 2,000 intervals of 10 normal scores: 95 % cover; outside [0.932, 0.967] once in 2,000 times.
    rng = np.random.default_rng(1)
    covered = 0
    for scores in rng.normal(3.0, 2.0, size=(2_000, 10)):
        interval = mean_interval(scores)
        assert interval is not None
        covered += interval[0] <= 3.0 <= interval[1]
    assert 0.932 <= covered / 2_000 <= 0.967


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (2, 9)])
def test_the_interval_of_a_difference_is_welchs(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    scores, others = rng.normal(5.0, 1.0, sizes[0]), rng.normal(1.0, 4.0, sizes[1])
    expected = scipy.stats.ttest_ind(scores, others, equal_var=False).confidence_interval(0.95)
    assert difference_interval(scores, others) == pytest.approx((expected.low, expected.high))
    assert difference_interval(scores[:1], others) is None
    assert difference_interval(scores, others[:1]) is None
    assert difference_interval(np.full(3, 2.0), np.full(2, 0.5)) == (1.5, 1.5)


@pytest.mark.parametrize(
    ("score", "random", "human", "expected"),
    [
        (30.5, 1.7, 30.5, 1.0),
        (1.7, 1.7, 30.5, 0.0),
        (-20.7, -20.7, 14.6, 0.0),
        (5.0, 0.0, 2.0, 2.5),
        # Skiing: fewer seconds are better, all scores are negative.
        (-10_717.25, -17_098.1, -4_336.4, 0.5),
    ],
)
def test_human_normalised_by_hand(
    score: float, random: float, human: float, expected: float
) -> None:
    assert human_normalised(score, random, human) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "random", "human", "baseline", "expected"),
    [
        (50.0, 0.0, 100.0, 50.0, 0.0),
        (75.0, 0.0, 100.0, 50.0, 0.25),
        # A baseline above the human is itself the measure.
        (300.0, 0.0, 100.0, 200.0, 0.5),
        (0.0, 0.0, 100.0, 200.0, -1.0),
        (-10.0, -20.0, 0.0, -15.0, 0.25),
    ],
)
def test_relative_scores_by_hand(
    score: float, random: float, human: float, baseline: float, expected: float
) -> None:
    assert relative_score(score, random, human, baseline) == pytest.approx(expected)


def test_nothing_is_relative_to_play_no_better_than_random() -> None:
    with pytest.raises(ValueError, match="better than random"):
        relative_score(1.0, 3.0, 3.0, 2.0)


def test_the_interquartile_mean_by_hand() -> None:
    # Of eight scores the two lowest and the two highest are left out.
    scores = np.array([[100.0, 1.0, 3.0, -50.0], [2.0, 4.0, 900.0, 0.0]])
    assert interquartile_mean(scores) == pytest.approx((1 + 2 + 3 + 4 - 0) / 4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_interquartile_mean_knows_no_order_and_stays_inside(
    scores: list[float], random: Any
) -> None:
    shuffled = scores.copy()
    random.shuffle(shuffled)
    middle = interquartile_mean(np.array(scores))
    assert middle == pytest.approx(interquartile_mean(np.array(shuffled)))
    assert min(scores) - 1e-6 <= middle <= max(scores) + 1e-6


def test_mean_median_and_iqm_by_hand() -> None:
    # Three games with means 1, 2 and 30; of the six runs the middle four are 1, 2, 2, 10.
    scores = np.array([[1.0, 1.0], [2.0, 2.0], [10.0, 50.0]])
    assert mean_median_iqm(scores) == pytest.approx([11, 2, (1 + 2 + 2 + 10) / 4])


def test_a_performance_profile_by_hand() -> None:
    scores = np.array([[0.2, 0.6], [1.0, 2.0]])
    shares = performance_profile(scores, np.array([0.0, 0.5, 0.6, 1.0, 1.5, 2.0]))
    # Above, not at: a score of 0.6 is not above 0.6.
    assert shares.tolist() == [1, 0.75, 0.5, 0.25, 0.25, 0]


def test_evening_out_by_hand() -> None:
    even = even_out([np.array([1.0]), np.array([2.0, 3.0]), np.array([4.0, 5.0, 6.0])])
    assert even.tolist() == [
        [1, 1, 1, 1, 1, 1],
        [2, 3, 2, 3, 2, 3],
        [4, 5, 6, 4, 5, 6],
    ]
    scores = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert even_out(scores).tolist() == scores.tolist()


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []]])
def test_a_game_without_scores_cannot_be_evened_out(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="every game needs a score"):
        even_out([np.array(of_game) for of_game in scores])


def test_the_bootstrap_draws_as_many_seeds_as_a_game_has() -> None:
    # One game with the seeds 0 and 1, one with 10, 20 and 30: each resample's means.
    means: list[tuple[float, float]] = []

    def statistic(resample: np.ndarray) -> float:
        assert resample.shape == (2, 6)
        means.append((float(resample[0].mean()), float(resample[1].mean())))
        return 0.0

    scores = [np.array([0.0, 1.0]), np.array([10.0, 20.0, 30.0])]
    stratified_bootstrap_interval(scores, statistic, np.random.default_rng(0), resamples=5_400)
    first = [round(mean, 9) for mean, _ in means]
    counts = [first.count(value) for value in (0.0, 0.5, 1.0)]
    # Samplers that do this fail once in 1,000 times (and the seed is fixed).
    assert scipy.stats.chisquare(counts, [1_350, 2_700, 1_350]).pvalue > 1e-3
    # Of the 27 draws of three seeds 1, 3, 6, 7, 6, 3, 1 have these sums.
    sums = [round(3 * mean) for _, mean in means]
    counts = [sums.count(value) for value in (30, 40, 50, 60, 70, 80, 90)]
    expected = [200 * ways for ways in (1, 3, 6, 7, 6, 3, 1)]
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "statistic", [interquartile_mean, lambda s: float(s.mean())], ids=["iqm", "mean"]
)
def test_the_bootstrap_covers_as_often_as_it_says(statistic: Any) -> None:
    # Five games, 20 seeds. With 20 seeds percentile intervals cover a little less than they
    # promise (resampling n values loses 1/n of their variance): about 94 %, of 200 repetitions
    # less than 88.5 % or more than 98.5 % about once in 400 times.
    levels = np.array([0.2, 0.8, 1.0, 1.1, 3.0])[:, None]
    rng = np.random.default_rng(2)
    truth = statistic(levels + rng.normal(0, 0.2, size=(5, 100_000)))
    covered = 0
    for _ in range(200):
        scores = levels + rng.normal(0, 0.2, size=(5, 20))
        low, high = stratified_bootstrap_interval(scores, statistic, rng, resamples=200)
        covered += low <= truth <= high
    assert 0.885 <= covered / 200 <= 0.985


def test_probability_of_improvement_by_hand() -> None:
    # 3 and 1 against 2, 0: three of four pairs. 5 against 5: a tie. Games weigh the same.
    ours, others = [np.array([3.0, 1.0]), np.array([5.0])], [np.array([2.0, 0.0]), np.array([5.0])]
    assert probability_of_improvement(ours, others) == pytest.approx((0.75 + 0.5) / 2)
    assert probability_of_improvement(others, ours) == pytest.approx(1 - (0.75 + 0.5) / 2)


def test_its_interval_holds_what_was_asked_and_no_more() -> None:
    rng = np.random.default_rng(0)
    covered, trials = 0, 150
    for _ in range(trials):
        # P(N(1, 1) > N(0, 1)) = Φ(1 / √2)
        ours = [rng.normal(1, 1, 12) for _ in range(4)]
        others = [rng.normal(0, 1, 12) for _ in range(4)]
        low, high = stratified_bootstrap_interval(
            [*ours, *others],
            lambda both: probability_of_improvement(both[:4], both[4:]),
            rng,
            resamples=200,
        )
        assert low <= probability_of_improvement(ours, others) <= high
        covered += low <= scipy.stats.norm.cdf(1 / 2**0.5) <= high
    # Resampling twelve seeds loses 1/12 of their variance: about 94 % cover. Of 150 repetitions
    # less than 86 % do about once in 10,000 times.
    assert covered / trials >= 0.86
