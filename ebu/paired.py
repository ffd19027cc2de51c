"""Statistics of policies that were scored in the same games: shares, differences, Holm.

Scores in the same games are alike: a game that is easy for one policy is easy for another. So
everything here is computed of the differences within a game. The students of a method differ by
their seeds, too, and stand for students of all other seeds: seeds and games are crossed random
effects, with an error of its own for each student in each game.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ebu.statistics import CONFIDENCE, t_quantile

_LEAST = 1e-12
"""The smallest p-value that is told apart from 0."""


class Difference(NamedTuple):
    """A difference of mean scores, its interval, and the p-value of none."""

    mean: float
    low: float
    high: float
    p_value: float


def share_interval(
    scores: np.ndarray,
    highest: np.ndarray,
    lowest: np.ndarray,
    *,
    another: bool = False,
) -> tuple[float, float] | None:
    """The 95 % interval (low, high) of the share (S − R) / (T − R) of mean scores (Fieller 1954).

    | argument | shape | meaning |
    | --- | --- | --- |
    | scores | (K, n) | S, of K students of different seeds in n games |
    | highest, lowest | (n,) | T and R, in the same games |
    | another | | of the share of another student in as many games, not of the students' mean |

    All shares r for which a t test does not reject S − R = r (T − R). Of one student the interval
    is over games, as exact as a t test. Of several, the squared margins of games, of n − 1 degrees
    of freedom, and of seeds, of K − 1, are added (Graybill, Wang 1980); a bootstrap over three
    seeds would be far too narrow.

    None for fewer than two games, for `another` student of one, and where T cannot be told from R:
    every share is possible then. Raises ValueError if the games differ in number.
    """
    students, games = scores.shape
    if not games == len(highest) == len(lowest):
        raise ValueError(f"{games}, {len(highest)} and {len(lowest)} games cannot be paired")
    if games < 2 or (another and students < 2):
        return None
    gains = np.stack([scores.mean(axis=0) - lowest, highest - lowest])
    s, t = gains.mean(axis=1)
    squared = t_quantile(games - 1, CONFIDENCE) ** 2 / games
    (ss, st), (_, tt) = squared * np.cov(gains)
    # (s − r t)² ≤ seeds + ss − 2 r st + r² tt, a quadratic in r.
    a, b = t**2 - tt, s * t - st
    if t <= 0 or a <= 1e-9 * t**2:
        return None
    c = s**2 - ss - _squared_seed_margin(scores, another=another)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return float((b - root) / a), float((b + root) / a)


def paired_difference(
    one: np.ndarray, other: np.ndarray, *, confidence: float = CONFIDENCE
) -> Difference | None:
    """The difference of the mean scores of two methods, one − other, in the same games.

    | argument | shape | meaning |
    | --- | --- | --- |
    | one, other | (K, n), (L, n) | scores of K and L students of different seeds in n games |

    The squared margins of games, of n − 1 degrees of freedom, and of each method's seeds, of K − 1
    and L − 1, are added (Graybill, Wang 1980): methods may scatter differently over seeds. What the
    students' own games scatter is in the scatter of their means, and so subtracted from that of the
    games: with many games that costs nothing, while the scatter of few seeds, less it, would give
    intervals that are too narrow. The p-value is the least risk at which the interval excludes 0.

    None for a single student of either, which tells nothing of its method's other seeds, and for
    fewer than two games. Raises ValueError if the games differ in number.
    """
    games = one.shape[1]
    if other.shape[1] != games:
        raise ValueError(f"{games} and {other.shape[1]} games cannot be paired")
    if games < 2 or min(len(one), len(other)) < 2:
        return None
    gaps = one.mean(axis=0) - other.mean(axis=0)
    mean, of_games = float(gaps.mean()), float(gaps.var(ddof=1)) / games
    parts: list[tuple[int, float]] = []
    for scores in (one, other):
        means, rests = _seed_variances(scores)
        of_games -= rests / len(scores)
        parts.append((len(scores) - 1, means / len(scores)))
    parts.append((games - 1, max(of_games, 0.0)))

    def margin(level: float) -> float:
        margins = [t_quantile(freedom, level) * math.sqrt(part) for freedom, part in parts]
        return math.hypot(*margins)

    half = margin(confidence)
    return Difference(mean, mean - half, mean + half, _least_risk(abs(mean), margin))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979).

    Rejecting those at most α makes a single wrong rejection among all at most α likely, however
    the tests depend on each other.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def _squared_seed_margin(scores: np.ndarray, *, another: bool) -> float:
    """The square of how far the mean (K, n) over seeds may be off by them; 0 for a single seed.

    `another`: of how far one more student may be from the mean. What the students' own games
    scatter is in the scatter of their means, and in that of the games too: it is subtracted as it
    counts there. Not of two students, too few for it.
    """
    students, games = scores.shape
    if students == 1:
        return 0.0
    means, rests = _seed_variances(scores)
    squared = t_quantile(students - 1, CONFIDENCE) ** 2 * (1 / students + another) * means
    if students > 2:
        squared -= t_quantile(games - 1, CONFIDENCE) ** 2 * rests / students
    return float(max(squared, 0.0))


def _seed_variances(scores: np.ndarray) -> tuple[float, float]:
    """The variance of students' means (K, n), K > 1, and the part of their games in it."""
    students, games = scores.shape
    of_students = scores.mean(axis=1, keepdims=True)
    rest = scores - of_students - scores.mean(axis=0) + scores.mean()
    rests = float(np.square(rest).sum()) / ((students - 1) * (games - 1)) / games
    return float(of_students.var(ddof=1)), rests


def _least_risk(distance: float, margin: Callable[[float], float]) -> float:
    """The p-value: 1 − the confidence at which the margin is this distance."""
    # SciPy is slow to import, so it is imported where it is needed.
    from scipy.optimize import brentq

    if distance <= margin(0.0):
        return 1.0
    if distance > margin(1 - _LEAST):
        return _LEAST
    # By the exponent: small p-values are found as well as large ones.
    found = brentq(lambda x: margin(1 - math.exp(x)) - distance, math.log(_LEAST), 0.0)
    return math.exp(found)
