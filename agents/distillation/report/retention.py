"""Retention: the share of the teacher's gain on random play that a student keeps.

(S − R) / (T − R) of the mean scores of student, teacher and random play. The raw ratio S / T stands
beside it in reports; alone it says nothing where random play scores or scores are negative.

Intervals are Fieller's (1954): all shares r of which a t test does not reject that S − R = r (T −
R), with the scatter of all three scores in it. A bootstrap of the games would be too narrow with
thirty of them, and far too narrow over three seeds.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from scipy.optimize import brentq

from ebu.statistics import CONFIDENCE

Interval = tuple[float, float]


class Mean(NamedTuple):
    """A mean with its squared standard error and the degrees of freedom of that."""

    value: float
    variance: float
    freedom: float


def mean_of(scores: Sequence[float]) -> Mean | None:
    """The mean of games, or of students of several seeds; None for fewer than two."""
    if len(scores) < 2:
        return None
    return Mean(
        float(np.mean(scores)), float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1
    )


def retention_interval(
    student: Sequence[float],
    teacher: Sequence[float],
    random: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The interval (low, high) of a retention.

    | argument | meaning |
    | --- | --- |
    | student | scores of the games of one student, or mean scores of students of several seeds |
    | teacher, random | scores of their games |

    Over seeds it says what to expect of another student trained alike, over games what more games
    of this student would show. None with fewer than two scores of any of them, and where the
    teacher cannot be told from random play: every share is possible then.

    The degrees of freedom are Welch's and Satterthwaite's.
    """
    means = [mean_of(scores) for scores in (student, teacher, random)]
    if None in means:
        return None
    s, t, r = (mean for mean in means if mean is not None)
    tail = (1 - confidence) / 2

    def excess(share: float) -> float:
        """Of the squared difference over what chance may make of it; not above 0 in the set."""
        weights = np.array([1.0, share, 1 - share])
        gap = s.value - share * t.value - (1 - share) * r.value
        return gap**2 - _margin(weights, (s, t, r), tail) ** 2

    gain = t.value - r.value
    # Otherwise `excess` is above 0 for no share that is large enough.
    if gain <= _margin(np.array([0.0, 1.0, 1.0]), (s, t, r), tail) * (1 + 1e-9):
        return None
    share = (s.value - r.value) / gain
    low, high = (_root(excess, share, step) for step in (-1.0, 1.0))
    return low, high


def _margin(weights: np.ndarray, means: Sequence[Mean], tail: float) -> float:
    """How far a sum of weighted means may be from its expectation by chance."""
    parts = weights**2 * [mean.variance for mean in means]
    variance = float(parts.sum())
    if variance == 0:
        return 0.0
    freedom = variance**2 / float((parts**2 / [mean.freedom for mean in means]).sum())
    return float(scipy.stats.t.isf(tail, freedom)) * math.sqrt(variance)


def _root(excess: Callable[[float], float], inside: float, step: float) -> float:
    """Where `excess` rises above 0 on the way from a point where it does not."""
    if excess(inside + step * 1e-12) > 0:
        return inside
    while excess(inside + step) <= 0:
        step *= 2
    return float(brentq(excess, inside, inside + step))
