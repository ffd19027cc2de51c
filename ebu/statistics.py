"""Statistics of scores: intervals, normalisation, and aggregates over games and seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

CONFIDENCE = 0.95

StatisticT = TypeVar("StatisticT", float, np.ndarray)


def mean_interval(
    scores: np.ndarray, *, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Student's t interval (low, high) of the mean of scores (n,); None for fewer than two.

    Scores that are all equal give an interval of that one value. Not a bootstrap: with the ten or
    thirty games of an evaluation those come out too narrow.
    """
    if len(scores) < 2:
        return None
    # SciPy is slow to import, so it is imported where it is needed.
    from scipy.special import stdtrit

    mean = float(np.mean(scores))
    error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5
    half = float(stdtrit(len(scores) - 1, (1 + confidence) / 2)) * error
    return mean - half, mean + half


def human_normalised(score: float, random: float, human: float) -> float:
    """0 for the score of random play, 1 for that of the human (Mnih et al. 2015, in shares)."""
    if human == random:
        raise ValueError(f"random and human score are both {random}: nothing to normalise by")
    return (score - random) / (human - random)


def relative_score(score: float, random: float, human: float, baseline: float) -> float:
    """Gain over a baseline agent, as a share of what the better of it and the human gain on random.

    (score − baseline) / (max(human, baseline) − random): 0 for the baseline's score (Wang et al.
    2016, "Dueling network architectures"; Lee et al. 2019 compare EBU with Nature DQN by it).
    Raises ValueError where neither is better than random play.
    """
    best = max(human, baseline)
    if best <= random:
        raise ValueError(f"neither {human} nor {baseline} is better than random play, {random}")
    return (score - baseline) / (best - random)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores, of any shape (Agarwal et al. 2021)."""
    from scipy.stats import trim_mean

    return float(trim_mean(scores, proportiontocut=0.25, axis=None))


def mean_median_iqm(scores: np.ndarray) -> np.ndarray:
    """Three aggregates (3,) of the normalised scores (games, seeds) of an agent's runs.

    The mean of all runs, the median over games of each game's mean over seeds, and the
    interquartile mean of all runs (Agarwal et al. 2021).
    """
    return np.array([scores.mean(), np.median(scores.mean(axis=1)), interquartile_mean(scores)])


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share (K,) of the runs with scores (games, seeds) above each of K thresholds.

    The score distribution of Agarwal et al. (2021): with as many seeds in every game it
    is the mean over games of the share of the seeds.
    """
    above: np.ndarray = scores[..., None] > thresholds
    return np.asarray(above.mean(axis=(0, 1)))


def even_out(scores: Iterable[np.ndarray]) -> np.ndarray:
    """Scores (seeds,) of each game as one array (games, L), with L a multiple of all the numbers.

    Where the numbers of seeds differ, L is their least common multiple and each game's scores are
    repeated: every game weighs the same, and every seed of a game. Raises ValueError for a game
    without scores.
    """
    padded, repeats, _ = _padded(scores)
    return np.take_along_axis(padded, repeats, axis=1)


def probability_of_improvement(
    scores: np.ndarray | Sequence[np.ndarray], others: np.ndarray | Sequence[np.ndarray]
) -> float:
    """Probability that a run of one agent scores higher than one of another in the same game.

    scores, others: (seeds,) for each game. Ties count half; games weigh the same (Agarwal et al.
    2021; the Mann-Whitney statistic).
    """
    shares = [
        float((np.sign(one[:, None] - other) * 0.5 + 0.5).mean())
        for one, other in zip(scores, others, strict=True)
    ]
    return float(np.mean(shares))


def _padded(scores: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (games, most seeds), the indices (games, L) that even them out, seeds (games, 1)."""
    games = list(scores)
    seeds = np.array([len(of_game) for of_game in games])
    if not seeds.size or not seeds.all():
        raise ValueError("every game needs a score")
    padded = np.zeros((len(games), seeds.max()))
    for row, of_game in zip(padded, games, strict=True):
        row[: len(of_game)] = of_game
    repeats = np.arange(np.lcm.reduce(seeds)) % seeds[:, None]
    return padded, repeats, seeds[:, None]


def stratified_bootstrap_interval(
    scores: Iterable[np.ndarray],
    statistic: Callable[[np.ndarray], StatisticT],
    rng: np.random.Generator,
    *,
    resamples: int = 2_000,
    confidence: float = CONFIDENCE,
) -> tuple[StatisticT, StatisticT]:
    """Percentile interval (low, high) of a statistic over runs of several games with several seeds.

    | argument | shape | meaning |
    | --- | --- | --- |
    | scores | (games, seeds), or (seeds,) for each game | normalised score of every run |
    | statistic | (games, L) → number or (K,) | for instance `interquartile_mean`; see `even_out` |

    Each game is a stratum: its seeds are resampled with replacement, the games stay
    (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice").
    A statistic of K numbers has K intervals, each for itself.
    """
    padded, repeats, seeds = _padded(scores)
    statistics = []
    for _ in range(resamples):
        drawn = np.take_along_axis(padded, rng.integers(seeds, size=padded.shape), axis=1)
        statistics.append(statistic(np.take_along_axis(drawn, repeats, axis=1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail], axis=0)
    return low, high


def share_interval(
    scores: Sequence[float],
    highest: Sequence[float],
    lowest: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
) -> tuple[float, float] | None:
    """The interval (low, high) of the share (S − R) / (T − R) of mean scores, by Fieller (1954).

    All shares r for which a t test does not reject S − R = r (T − R), given the scatter of `scores`
    (S), `highest` (T) and `lowest` (R), each (n,); the degrees of freedom are Welch's and
    Satterthwaite's. A bootstrap would be too narrow with thirty games, and far too narrow over
    three seeds.

    None with fewer than two scores of any of them, and where T cannot be told from R: every share
    is possible then.
    """
    samples = (scores, highest, lowest)
    if min(map(len, samples)) < 2:
        return None
    from scipy.optimize import brentq
    from scipy.stats import t as students_t

    s, t, r = (float(np.mean(sample)) for sample in samples)
    variances = np.array([float(np.var(sample, ddof=1)) / len(sample) for sample in samples])
    freedoms = np.array([len(sample) - 1 for sample in samples])

    def margin(*weights: float) -> float:
        """How far a sum of weighted means may be from its expectation by chance."""
        parts = np.array(weights) ** 2 * variances
        variance = float(parts.sum())
        if variance == 0:
            return 0.0
        freedom = variance**2 / float((parts**2 / freedoms).sum())
        return float(students_t.isf((1 - confidence) / 2, freedom)) * math.sqrt(variance)

    def excess(share: float) -> float:
        """Of the squared difference over what chance may make of it; not above 0 in the set."""
        return (s - share * t - (1 - share) * r) ** 2 - margin(1.0, share, 1 - share) ** 2

    # Otherwise `excess` is above 0 for no share that is large enough.
    if t - r <= margin(0.0, 1.0, 1.0) * (1 + 1e-9):
        return None
    inside = (s - r) / (t - r)

    def end(step: float) -> float:
        if excess(inside + step * 1e-12) > 0:
            return inside
        while excess(inside + step) <= 0:
            step *= 2
        return float(brentq(excess, inside, inside + step))

    return end(-1.0), end(1.0)
