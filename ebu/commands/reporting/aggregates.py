"""The statistics of a group of runs: by game, over all games, and as a profile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import numpy as np

from ebu.commands.reporting.comparison import Group
from ebu.commands.reporting.published import (
    HUMAN_TABLES,
    PUBLISHED_26,
    ReferenceAgent,
    normalised,
    reference_agents,
    relative,
)
from ebu.commands.reporting.runs import Run, method_settings
from ebu.statistics import (
    StatisticT,
    even_out,
    mean_interval,
    mean_median_iqm,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap_interval,
)
from envs.games import ATARI100K
from envs.protocols import PROTOCOLS

BOOTSTRAP_SEED = 0
FEWEST_SEEDS = 3
"""Seeds of every game from which intervals are bootstrapped: two give their own range."""
_BEYOND_DQN = {"n_step", "n_step_start", "double", "prioritized", "quantiles"}
# How many human-normalised scores a performance profile is drawn at, and the highest of them.
PROFILE_POINTS, PROFILE_END = 161, 8.0


@dataclass(frozen=True)
class GameRow:
    """What one method scored in one game.

    | field | meaning |
    | --- | --- |
    | scores | (seeds,) raw score of each run |
    | interval | [low, high] of the mean by Student's t, over seeds; None for one seed |
    | normalised | mean human-normalised score by human table; None without a human score |
    | relative_to_dqn_200m | relative score over Nature DQN; None without its score |
    | relative_to_dqn_here | the same over the group's own DQN, at the same frames: see `own_dqn` |
    | last_games | mean over runs of the return of the last 100 training games |
    """

    game: str
    method: str
    seeds: list[int]
    scores: np.ndarray
    mean: float
    interval: tuple[float, float] | None
    normalised: dict[str, float | None]
    relative_to_dqn_200m: float | None
    relative_to_dqn_here: float | None
    last_games: float | None


def game_rows(group: Group) -> list[GameRow]:
    """Every method's row of every game, in their order."""
    dqn = own_dqn(group)
    baseline = {} if dqn is None else group.methods[dqn]
    rows = []
    for game in group.games:
        for name, games in group.methods.items():
            if game not in games:
                continue
            runs = games[game]
            scores = _scores(runs)
            mean = float(scores.mean())
            own = None
            if game in baseline and name != dqn:
                own = relative(game, mean, float(_scores(baseline[game]).mean()))
            last = [run.last_games for run in runs if run.last_games is not None]
            rows.append(
                GameRow(
                    game=game,
                    method=name,
                    seeds=[run.seed for run in runs],
                    scores=scores,
                    mean=mean,
                    interval=mean_interval(scores),
                    normalised={table: normalised(game, mean, table) for table in HUMAN_TABLES},
                    relative_to_dqn_200m=relative(game, mean),
                    relative_to_dqn_here=own,
                    last_games=float(np.mean(last)) if last else None,
                )
            )
    return rows


def own_dqn(group: Group) -> str | None:
    """The method that is DQN as published: one step, not double, of the mean, uniform draws.

    None unless there is one, and one alone.
    """
    found = []
    for name, games in group.methods.items():
        (run, *_), *_ = games.values()
        if run.agent == "dqn" and not method_settings(run.settings).keys() & _BEYOND_DQN:
            found.append(name)
    return found[0] if len(found) == 1 else None


def _scores(runs: Sequence[Run]) -> np.ndarray:
    return np.array([run.final_score.mean for run in runs if run.final_score is not None])


@dataclass(frozen=True)
class AggregateRow:
    """Mean, median, interquartile mean (3,) of human-normalised scores, with their intervals.

    `low` and `high` are None where a game has fewer scores than `FEWEST_SEEDS`.
    `above_human` counts the games in which the mean score is above the human's. `runs` is None
    where it is not known, `of_means` says that the interquartile mean is of the games' means.
    """

    name: str
    frames: int
    runs: int | None
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    source: str = "here"
    protocol: str = ""
    above_human: int = 0
    of_means: bool = False


@dataclass(frozen=True)
class Aggregate:
    """Rows over the same games under one human table."""

    table: str
    games: list[str]
    rows: list[AggregateRow] = field(default_factory=list)


def aggregates(group: Group) -> list[Aggregate]:
    """Every method over the games that all of them have, under both human tables.

    Published agents are added over the same games; where those lack some of the games,
    there is a further aggregate over the others.
    """
    found = []
    for table in HUMAN_TABLES:
        games = group.common_games(table)
        published = [
            game
            for game in games
            if all(agent.score(game) is not None for agent in reference_agents(group.protocol))
        ]
        if games:
            found.append(_aggregate(group, table, games, with_published=published == games))
        if published and published != games:
            found.append(_aggregate(group, table, published, with_published=True))
    return found


def _aggregate(group: Group, table: str, games: list[str], with_published: bool) -> Aggregate:
    aggregate = Aggregate(table, games)
    for name in group.methods:
        scores = normalised_scores(group, name, games, table)
        low, high = intervals(scores, mean_median_iqm)
        runs = sum(map(len, scores))
        values = mean_median_iqm(even_out(scores))
        aggregate.rows.append(
            AggregateRow(
                name,
                group.frames,
                runs,
                values,
                low,
                high,
                protocol=group.protocol,
                above_human=sum(float(of_game.mean()) > 1.0 for of_game in scores),
            )
        )
    if with_published:
        aggregate.rows.extend(
            _published_row(agent, games, table) for agent in reference_agents(group.protocol)
        )
    return aggregate


def _published_row(agent: ReferenceAgent, games: list[str], table: str) -> AggregateRow:
    """An agent's aggregates as published over all 26 games, otherwise of the games' means."""
    shares = np.array(
        [normalised(game, agent.score(game) or 0.0, table) for game in games], dtype=np.float64
    )
    values, of_means = mean_median_iqm(shares[:, None]), True
    if set(games) == set(ATARI100K) and table == "57table":
        for row in PUBLISHED_26:
            if row.agent == agent:
                values = np.array([row.mean, row.median, row.iqm])
                of_means = agent.runs is None
    return AggregateRow(
        agent.name,
        agent.frames,
        None if agent.runs is None else agent.runs * len(games),
        values,
        source=agent.source,
        protocol=agent.protocol,
        above_human=int((shares > 1.0).sum()),
        of_means=of_means,
    )


def normalised_scores(
    group: Group, name: str, games: Sequence[str], table: str
) -> list[np.ndarray]:
    """Human-normalised scores (seeds,) of a method, for each of these games."""
    return [
        np.array([normalised(game, score, table) for score in _scores(group.methods[name][game])])
        for game in games
    ]


def intervals(
    scores: Sequence[np.ndarray], statistic: Callable[[np.ndarray], StatisticT]
) -> tuple[StatisticT, StatisticT] | tuple[None, None]:
    """Stratified bootstrap intervals of a statistic; None where a game has few scores."""
    if min(map(len, scores)) < FEWEST_SEEDS:
        return None, None
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    low, high = stratified_bootstrap_interval(scores, statistic, rng)
    return low, high


@dataclass(frozen=True)
class Improvement:
    """Probability that a run of one method beats a run of another in a game both have played.

    `low` and `high` are None where a game has fewer scores of one of them than `FEWEST_SEEDS`.
    """

    name: str
    over: str
    games: int
    probability: float
    low: float | None
    high: float | None


def improvements(group: Group, table: str) -> list[Improvement]:
    """Every pair of methods over the games in which both have two seeds (Agarwal et al. 2021).

    A single pair of runs says one or the other, which is no probability.
    """
    found = []
    for one, other in combinations(group.methods, 2):
        both = (group.methods[one], group.methods[other])
        games = [game for game in both[0] if all(len(of.get(game, ())) > 1 for of in both)]
        games = [game for game in games if normalised(game, 0.0, table) is not None]
        if not games:
            continue
        ours, theirs = (normalised_scores(group, name, games, table) for name in (one, other))
        low, high = intervals([*ours, *theirs], _improvement)
        probability = probability_of_improvement(ours, theirs)
        found.append(Improvement(one, other, len(games), probability, low, high))
    return found


def _improvement(scores: np.ndarray) -> float:
    """Probability of improvement of the first half of the rows over the second."""
    half = len(scores) // 2
    return probability_of_improvement(scores[:half], scores[half:])


@dataclass(frozen=True)
class Profile:
    """Shares (K,) of a method's runs above K thresholds, with pointwise intervals."""

    name: str
    shares: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def profiles(group: Group, games: Sequence[str], table: str) -> tuple[np.ndarray, list[Profile]]:
    """Thresholds (K,) and the performance profile of every method over the same games."""
    scores = {name: normalised_scores(group, name, games, table) for name in group.methods}
    highest = max(float(of_game.max()) for of in scores.values() for of_game in of)
    thresholds = np.linspace(0.0, min(PROFILE_END, max(1.5, 1.05 * highest)), PROFILE_POINTS)
    statistic = partial(performance_profile, thresholds=thresholds)
    return thresholds, [
        Profile(name, statistic(even_out(of)), *intervals(of, statistic))
        for name, of in scores.items()
    ]


@dataclass(frozen=True)
class Statistics:
    """Everything that is said of a group.

    | field | meaning |
    | --- | --- |
    | rows | each method in each game |
    | aggregates | over the games that all methods have |
    | profile_table, profile_games | human table of the protocol, and the games of the profiles |
    | thresholds, profiles | see `profiles`; empty where no game has a human score |
    """

    group: Group
    rows: list[GameRow]
    aggregates: list[Aggregate]
    profile_table: str
    profile_games: list[str]
    thresholds: np.ndarray
    profiles: list[Profile]
    improvements: list[Improvement]


def statistics_of(group: Group) -> Statistics:
    """The statistics of a group of runs."""
    table = PROTOCOLS[group.protocol].human_table
    games = group.common_games(table)
    thresholds, found = profiles(group, games, table) if games else (np.empty(0), [])
    return Statistics(
        group,
        game_rows(group),
        aggregates(group),
        table,
        games,
        thresholds,
        found,
        improvements(group, table),
    )
