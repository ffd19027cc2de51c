"""Playing games to score an agent, and the statistics of scores."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from ebu.frames import FrameStack, torch_dtype
from ebu.interfaces import VectorEnvironment

CONFIDENCE = 0.95

StatisticT = TypeVar("StatisticT", float, np.ndarray)


class Act(Protocol):
    """`Agent.act`: actions (N,) int64 and their probabilities (N,) for stacks of N environments."""

    def __call__(
        self,
        stacks: Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Evaluation:
    """Games played to their end, those of one environment after those of the one before it.

    | field | shape, dtype | meaning |
    | --- | --- | --- |
    | returns | (G,) float64 | raw score of each game |
    | lengths_frames | (G,) int64 | frames the agent played: agent steps × frames per step |
    | capped | (G,) bool | ended by the time limit; counted like any other game |
    | environments | (G,) int64 | the environment that played the game |
    | starts, stops | (G,) int64 | the game's actions are `actions[environment][start:stop]` |
    | actions | N arrays (steps,) int64 | everything sent to each environment after its reset, up to
      the end of its last game: with its seed, all that it takes to play its games again |
    """

    returns: np.ndarray
    lengths_frames: np.ndarray
    capped: np.ndarray
    environments: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    actions: list[np.ndarray]

    @property
    def best_game(self) -> int:
        """Index of the game with the highest return, the first of several."""
        return int(self.returns.argmax())

    def course(self, game: int) -> tuple[int, np.ndarray, int, int]:
        """The game's environment, all actions sent there, and where in them it starts and stops."""
        j = int(self.environments[game])
        return j, self.actions[j], int(self.starts[game]), int(self.stops[game])


def evaluate(
    act: Act,
    env: VectorEnvironment,
    *,
    episodes: int,
    epsilon: float,
    rng: np.random.Generator,
    random_start_actions: int = 0,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[np.ndarray], None] | None = None,
) -> Evaluation | None:
    """Reset N environments and play `episodes` games in them, each to its end.

    Every environment plays a quota of games fixed beforehand. The first games to finish, whoever
    plays them, would be the short ones, and in most games those are the bad ones.

    | argument | meaning |
    | --- | --- |
    | act | chooses the actions, see `Act` |
    | epsilon | share of random actions |
    | rng | draws the exploration; nothing else is drawn |
    | random_start_actions | the first actions of every game that are random whatever epsilon |
    | device | where the stacks are kept; the CPU if not given |
    | should_stop | asked before every step; once it says yes, nothing is returned |
    | progress | called with the number of finished games when it has grown |
    | watch | called after every step with the actions (N,) that were sent |

    Raises ValueError with fewer than one game for each environment.
    """
    num_envs = env.num_envs
    if episodes < num_envs:
        raise ValueError(f"{num_envs} environments cannot share {episodes} games")
    stack = FrameStack(
        num_envs,
        env.frame_shape,
        torch_dtype(env.frame_dtype),
        env.stack,
        device or torch.device("cpu"),
    )
    games_left = np.full(num_envs, episodes // num_envs)
    games_left[: episodes % num_envs] += 1

    returns = np.zeros(num_envs, dtype=np.float64)
    starts = np.zeros(num_envs, dtype=np.int64)
    games: list[list[tuple[float, bool, int, int]]] = [[] for _ in range(num_envs)]
    sent: list[np.ndarray] = []

    step = env.reset()
    stacks = stack.push(step.frames, step.started)
    while games_left.any():
        if should_stop is not None and should_stop():
            return None
        # Environments that have played their games go on being stepped, and are ignored.
        playing = games_left > 0
        forced = len(sent) - starts < random_start_actions
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[playing], _ = act(
            stacks if playing.all() else stacks[torch.from_numpy(playing).to(stacks.device)],
            epsilon=epsilon,
            rng=rng,
            forced_random=forced[playing],
        )
        env.send(actions)
        sent.append(actions)
        step = env.recv()
        stacks = stack.push(step.frames, step.started)
        if watch is not None:
            watch(actions)

        returns += step.rewards
        returns[step.started] = 0
        starts[step.started] = len(sent)
        for j in np.flatnonzero((step.terminated | step.truncated) & playing):
            games[j].append((returns[j], bool(step.truncated[j]), starts[j], len(sent)))
            games_left[j] -= 1
            if progress is not None:
                progress(episodes - int(games_left.sum()))

    played = [(*game, j) for j, of_one in enumerate(games) for game in of_one]
    scores, capped, first, last, environments = zip(*played, strict=True)
    by_environment = np.stack(sent, axis=1)
    return Evaluation(
        returns=np.array(scores, dtype=np.float64),
        lengths_frames=(np.array(last) - np.array(first)) * env.frames_per_step,
        capped=np.array(capped, dtype=bool),
        environments=np.array(environments, dtype=np.int64),
        starts=np.array(first, dtype=np.int64),
        stops=np.array(last, dtype=np.int64),
        actions=[by_environment[j, : of_one[-1][3]].copy() for j, of_one in enumerate(games)],
    )


def summarise(
    evaluation: Evaluation,
    *,
    random_score: float | None = None,
    human_score: float | None = None,
    human_table: str | None = None,
) -> dict[str, Any]:
    """Describe an evaluation in JSON values.

    | key | meaning |
    | --- | --- |
    | games, capped_games | all games, and those ended by the time limit |
    | mean, median, deviation | of the raw scores; deviation: None for a single game |
    | interval_95 | [low, high] for the mean by Student's t; None for a single game |
    | frames_played, mean_length_frames | frames the agent played, in all and per game |
    | human_normalised, human_table | the mean as a share of the way from random to human play and
      the table whose scores were used; None without reference scores |
    """
    returns = evaluation.returns
    mean = float(returns.mean())
    interval = mean_interval(returns)
    normalised = None
    if random_score is not None and human_score is not None:
        normalised = human_normalised(mean, random_score, human_score)
    return {
        "games": len(returns),
        "capped_games": int(evaluation.capped.sum()),
        "mean": mean,
        "median": float(np.median(returns)),
        "deviation": float(returns.std(ddof=1)) if len(returns) > 1 else None,
        "interval_95": None if interval is None else list(interval),
        "frames_played": int(evaluation.lengths_frames.sum()),
        "mean_length_frames": float(evaluation.lengths_frames.mean()),
        "human_normalised": normalised,
        "human_table": None if normalised is None else human_table,
    }


def mean_interval(
    scores: np.ndarray, *, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Student's t interval (low, high) of the mean of scores (n,); None for fewer than two.

    Scores that are all equal give an interval of that one value. Not a bootstrap: with the ten or
    thirty games of an evaluation those come out too narrow.
    """
    if len(scores) < 2:
        return None
    mean = float(np.mean(scores))
    error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(scores) - 1)) * error
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
    return float(scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None))


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

    Each game is a stratum: its seeds are drawn anew with replacement, the games stay
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
