"""Statistics of scores: intervals, normalisation, and aggregates over games and seeds."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

CONFIDENCE = 0.95

StatisticT = TypeVar("StatisticT", float, np.ndarray)


def mean_interval(scores: np.ndarray) -> tuple[float, float] | None:
    """Student's 95 % interval (low, high) of the mean of scores (n,); None for fewer than two.

    Scores that are all equal give an interval of that one value. Not a bootstrap: with the ten or
    thirty games of an evaluation those come out too narrow.
    """
    return _t_interval(scores, 1 / len(scores)) if len(scores) > 1 else None


def prediction_interval(scores: np.ndarray) -> tuple[float, float] | None:
    """Student's 95 % interval (low, high) of one more score like (n,); None for fewer than two.

    For the score of a run with another seed, from those of n seeds.
    """
    return _t_interval(scores, 1 + 1 / len(scores)) if len(scores) > 1 else None


def difference_interval(scores: np.ndarray, others: np.ndarray) -> tuple[float, float] | None:
    """Welch's 95 % interval (low, high) of the mean of scores (n,) minus that of others (m,).

    None where either has fewer than two. Their variances may differ (Welch 1947, Biometrika 34).
    """
    if min(len(scores), len(others)) < 2:
        return None
    difference = float(np.mean(scores) - np.mean(others))
    squares = [float(np.var(each, ddof=1)) / len(each) for each in (scores, others)]
    total = sum(squares)
    if total == 0:
        return difference, difference
    freedom = total**2 / sum(
        square**2 / (len(each) - 1) for square, each in zip(squares, (scores, others), strict=True)
    )
    half = t_quantile(freedom, CONFIDENCE) * total**0.5
    return difference - half, difference + half


def _t_interval(scores: np.ndarray, variances: float) -> tuple[float, float]:
    """Around the mean, of what has this many times the variance of a score."""
    mean = float(np.mean(scores))
    error = float(np.std(scores, ddof=1)) * variances**0.5
    half = t_quantile(len(scores) - 1, CONFIDENCE) * error
    return mean - half, mean + half


def t_quantile(freedom: float, confidence: float) -> float:
    """How far Student's t strays from 0 with this confidence."""
    # SciPy is slow to import, so it is imported where it is needed.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


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
) -> tuple[StatisticT, StatisticT]:
    """95 % percentile interval (low, high) of a statistic over runs of several games and seeds.

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
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail], axis=0)
    return low, high
