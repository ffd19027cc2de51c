"""Intervals of shares and differences of policies that played the same games."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ebu.paired import Difference, holm, paired_difference, share_interval
from ebu.statistics import mean_interval

scores = st.lists(st.integers(-5, 5), min_size=6, max_size=6)


def of(*returns: float) -> np.ndarray:
    return np.array(returns, dtype=np.float64)


# --- shares ---------------------------------------------------------------------------------


def test_with_scatter_of_the_scores_alone_it_is_students_t() -> None:
    known = of(102, 102, 102, 102), of(2, 2, 2, 2)
    assert share_interval(of(62, 62, 62, 62)[None], *known) == pytest.approx((0.6, 0.6))
    student = of(60, 75, 66, 80)
    low, high = mean_interval(student) or (math.nan, math.nan)
    found = share_interval(student[None], *known)
    assert found == pytest.approx(((low - 2) / 100, (high - 2) / 100))


@given(
    st.lists(st.integers(-50, 90), min_size=6, max_size=6),
    scores,
    scores,
    st.floats(0.1, 10),
    st.floats(-100, 100),
)
def test_at_its_ends_a_paired_t_test_has_the_p_value_of_its_confidence(
    student: list[int], teacher: list[int], random: list[int], unit: float, zero: float
) -> None:
    samples = [of(*student), 60 + of(*teacher), of(*random)]
    found = share_interval(samples[0][None], *samples[1:])
    assert found is not None
    for share in found:
        gaps = samples[0] - share * samples[1] - (1 - share) * samples[2]
        if np.ptp(gaps) < 1e-6:
            assert gaps.mean() == pytest.approx(0, abs=1e-6)
            continue
        assert scipy.stats.ttest_1samp(gaps, 0).pvalue == pytest.approx(0.05, rel=1e-3)
    # Neither the unit nor the zero of scores matters.
    scaled = [unit * sample + zero for sample in samples]
    again = share_interval(scaled[0][None], *scaled[1:])
    assert again == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_seeds_by_hand_where_games_do_not_scatter() -> None:
    students, known = of(50, 62, 68)[:, None] * np.ones(4), (of(*[102.0] * 4), of(*[2.0] * 4))
    # Means 50, 62, 68 and the deviation of the three; t of two degrees of freedom is 4.3027.
    mean, deviation = 60, math.sqrt((100 + 4 + 64) / 2)
    for another, factor in ((False, math.sqrt(1 / 3)), (True, math.sqrt(4 / 3))):
        half = 4.302653 * deviation * factor
        found = share_interval(students, *known, another=another)
        assert found == pytest.approx(((mean - half - 2) / 100, (mean + half - 2) / 100))


@pytest.mark.parametrize(
    ("student", "teacher", "random"),
    [
        ([8], [12], [2]),
        # The teacher cannot be told from random play, or is worse.
        ([8, 9], [2, 30], [2, 3]),
        ([8, 9], [2, 3], [12, 14]),
        ([8, 9], [2, 2], [2, 2]),
    ],
)
def test_there_is_none_where_every_share_is_possible(
    student: list[float], teacher: list[float], random: list[float]
) -> None:
    assert share_interval(of(*student)[None], of(*teacher), of(*random)) is None


def test_another_student_is_not_predicted_from_a_single_one() -> None:
    games = of(12, 13, 14), of(2, 3, 1)
    assert share_interval(of(8, 9, 7)[None], *games) is not None
    assert share_interval(of(8, 9, 7)[None], *games, another=True) is None


def test_different_games_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        share_interval(of(8, 9)[None], of(12, 13, 14), of(2, 3))
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(of(8, 9)[None], of(12, 13, 14)[None])


# --- coverage -------------------------------------------------------------------------------

TRIALS, GAMES, SEEDS = 1000, 100, 3
LEAST, MOST = scipy.stats.binom.ppf([0.00005, 0.99995], TRIALS, 0.95) / TRIALS
"""Of a coverage of 0.95 the trials show less or more once in 10,000 tests: 0.921 and 0.975. Of a
coverage of 0.90 they show less 98.7 times in 100."""


def students_in(
    rng: np.random.Generator, mean: float, of_seeds: float, games: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (SEEDS, GAMES) of a method and (GAMES,) of one more student of it: a mean, the games'
    own difficulty, what a seed makes of a student, and skewed chance."""
    chance = rng.exponential(4, (SEEDS + 1, GAMES)) - 4
    found = mean + rng.normal(0, of_seeds, (SEEDS + 1, 1)) + games + chance
    return found[:SEEDS], found[SEEDS] - games


def made_up_ends(rng: np.random.Generator, games: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (GAMES,) of a teacher, of mean 12, and of random play, of mean 2."""
    teacher = 12 + 0.8 * games + rng.exponential(4, GAMES) - 4
    return teacher, 1 + rng.exponential(1, GAMES)


@pytest.mark.parametrize("of_seeds", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("kind", ["a student", "a method", "another student", "a difference"])
def test_an_interval_of_the_report_covers_as_often_as_it_says(kind: str, of_seeds: float) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        games = rng.exponential(4, GAMES) - 4
        # Of a single student its seed is a part: its mean is the truth.
        scatter = 0.0 if kind == "a student" else of_seeds
        students, one_more = students_in(rng, 10, scatter, games)
        found: Difference | tuple[float, float] | None
        if kind == "a difference":
            found = paired_difference(students, students_in(rng, 9, scatter, games)[0])
            low, high = (1, 0) if found is None else (found.low, found.high)
            covered += low <= 10 - 9 <= high
            continue
        if kind == "a student":
            students = students[:1] + of_seeds
        another = kind == "another student"
        found = share_interval(students, *made_up_ends(rng, games), another=another)
        low, high = found or (1, 0)
        truth = one_more.mean() if another else 10 + (kind == "a student") * of_seeds
        covered += low <= (truth - 2) / (12 - 2) <= high
    assert covered / TRIALS >= LEAST
    # Seeds that scatter less than chance are found to scatter more, and so are two methods' alike.
    if kind == "a student" or (of_seeds == 3.0 and kind != "a difference"):
        assert covered / TRIALS <= MOST


def test_a_difference_is_no_wider_than_needed_where_one_methods_seeds_scatter() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        games = rng.exponential(4, GAMES) - 4
        one, other = (students_in(rng, 10, of_seeds, games)[0] for of_seeds in (3.0, 0.0))
        found = paired_difference(one, other)
        covered += found is not None and found.low <= 0 <= found.high
    assert LEAST <= covered / TRIALS <= MOST


def test_a_student_is_covered_over_few_games() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        games = rng.normal(0, 4, 10)
        student, teacher, random = (
            mean + share * games + rng.normal(0, 4 * mean / 12, 10)
            for mean, share in ((10, 1), (12, 0.8), (1, 0))
        )
        low, high = share_interval(student[None], teacher, random) or (1, 0)
        covered += low <= (10 - 1) / (12 - 1) <= high
    assert LEAST <= covered / TRIALS <= MOST


@pytest.mark.parametrize("of_seeds", [0.1, 0.2, 0.3])
def test_a_method_is_covered_where_seeds_scatter_less_than_chance(of_seeds: float) -> None:
    """With a quiet teacher: the games of a noisy one hide what seeds do."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        games, chance = rng.normal(0, 1, GAMES), rng.normal(0, 2, (SEEDS, GAMES))
        students = 2 + games + rng.normal(0, 2 * of_seeds, (SEEDS, 1)) + chance
        teacher, random = 3 + games + rng.normal(0, 0.7, GAMES), rng.normal(0, 0.5, GAMES)
        low, high = share_interval(students, teacher, random) or (1, 0)
        covered += low <= 2 / 3 <= high
    assert covered / TRIALS >= LEAST


@pytest.mark.parametrize(
    ("of_main", "of_others"), [(0.0, 0.0), (1.0, 1.0), (0.0, 0.3), (0.0, 3.0), (3.0, 0.0)]
)
def test_none_of_many_methods_alike_is_called_different(of_main: float, of_others: float) -> None:
    rng = np.random.default_rng(0)
    trials, methods, wrong, excluded = 400, 5, 0, 0
    for _ in range(trials):
        games = rng.exponential(4, GAMES) - 4
        main = students_in(rng, 10, of_main, games)[0]
        others = [students_in(rng, 10, of_others, games)[0] for _ in range(methods)]
        found = [paired_difference(other, main) for other in others]
        p_values = [difference.p_value for difference in found if difference is not None]
        wrong += min(holm(p_values)) < 0.05
        together = paired_difference(others[0], main, confidence=1 - 0.05 / methods)
        excluded += together is None or not together.low <= 0 <= together.high
    # At most 5 % of the trials, and 1 % for one of the intervals that hold together; more by chance
    # once in 10,000 tests.
    assert wrong <= scipy.stats.binom.ppf(0.9999, trials, 0.05)
    assert excluded <= scipy.stats.binom.ppf(0.9999, trials, 0.05 / methods)


# --- differences ----------------------------------------------------------------------------


def test_what_all_share_in_a_game_does_not_count() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(10, 1, (3, 20)), rng.normal(9, 1, (2, 20))
    found = paired_difference(one, other)
    assert found is not None
    assert found == pytest.approx(paired_difference(one + np.arange(20), other + np.arange(20)))
    assert found.mean == pytest.approx(one.mean() - other.mean())
    swapped = paired_difference(other, one)
    assert swapped is not None
    assert swapped == pytest.approx((-found.mean, -found.high, -found.low, found.p_value))


def test_the_p_value_is_the_least_risk_at_which_0_is_excluded() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(10, 3, (3, 20)), rng.normal(9, 3, (3, 20))
    found = paired_difference(one, other)
    assert found is not None
    at_risk = paired_difference(one, other, confidence=1 - found.p_value)
    assert at_risk is not None
    assert min(abs(at_risk.low), abs(at_risk.high)) == pytest.approx(0, abs=1e-6)
    same = paired_difference(one, one)
    assert same is not None
    assert same.p_value == 1.0


def test_a_single_student_says_nothing_of_its_method() -> None:
    one, three = of(1, 2, 3)[None], np.arange(9.0).reshape(3, 3)
    assert paired_difference(one, of(4, 6, 7)[None]) is None
    assert paired_difference(one, three) is None
    assert paired_difference(three, one) is None


def test_a_difference_by_hand_where_games_do_not_scatter() -> None:
    one, other = of(50, 62, 68)[:, None] * np.ones(4), of(40, 44)[:, None] * np.ones(4)
    found = paired_difference(one, other)
    assert found is not None
    # Variances of the means 84 / 3 and 8 / 2; t of two degrees of freedom is 4.3027, of one 12.706.
    half = math.sqrt(4.302653**2 * 28 + 12.706205**2 * 4)
    assert found[:3] == pytest.approx((18, 18 - half, 18 + half))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p_value <= adjusted <= min(1.0, len(p_values) * p_value) or adjusted == p_value
