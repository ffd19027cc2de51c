"""Published scores, each with its source, protocol and budget, and scores relative to them."""

from dataclasses import dataclass
from typing import Any

from ebu.statistics import human_normalised, relative_score
from envs import is_atari
from envs.games import ReferenceScores, reference_scores, score_at_100k

HUMAN_TABLES = ("nature2015", "57table")

NATURE = "Mnih et al. (2015), extended data table 2"
CURVES = "computed from published learning curves"
EBU = "Lee et al. (2019)"
PAPER_PROTOCOL = "no sticky actions, ε 0.05, 30 games of at most 5 minutes"
TRAINING_RETURNS = "sticky actions, returns of training games"
FRAMES_100K = 400_000
PROTOCOL_100K = "Atari 100k"


def references(game: str) -> ReferenceScores | None:
    """The published scores of a game; None for what is no Atari game of the 57."""
    return reference_scores(game) if is_atari(game) else None


def normalised(game: str, score: float, table: str) -> float | None:
    """Human-normalised score under a table of `HUMAN_TABLES`; None where it has no human score."""
    known = references(game)
    human = None if known is None else known.human(table)
    if known is None or known.random is None or human is None:
        return None
    return human_normalised(score, known.random, human)


def relative(game: str, score: float, baseline: float | None = None) -> float | None:
    """Relative score over a baseline's raw score, that of Nature DQN at 200M frames if not given.

    With the human scores of the Nature table; None where one of the scores is not known.
    """
    known = references(game)
    if known is None or known.random is None or known.human_nature2015 is None:
        return None
    baseline = known.dqn_200m if baseline is None else baseline
    if baseline is None:
        return None
    return relative_score(score, known.random, known.human_nature2015, baseline)


@dataclass(frozen=True)
class ReferenceAgent:
    """An agent whose raw score of each game is known.

    | field | meaning |
    | --- | --- |
    | column | its name in `ReferenceScores`, at 400,000 frames in `envs/atari100k.csv` |
    | runs | of each game, where the source says so |
    """

    name: str
    column: str
    frames: int
    protocol: str
    source: str
    runs: int | None = None

    def score(self, game: str) -> float | None:
        """The agent's raw score of a game; None if it is not known."""
        if self.frames == FRAMES_100K:
            return score_at_100k(self.column, game)
        known = references(game)
        score: float | None = None if known is None else getattr(known, self.column)
        return score


REFERENCE_AGENTS = (
    ReferenceAgent("DQN (Nature)", "dqn_200m", 200_000_000, PAPER_PROTOCOL, NATURE),
    ReferenceAgent("DQN, Adam", "dqn_adam_10m", 10_000_000, TRAINING_RETURNS, CURVES),
    ReferenceAgent("Rainbow", "rainbow_10m", 10_000_000, TRAINING_RETURNS, CURVES),
    ReferenceAgent("IQN", "iqn_10m", 10_000_000, TRAINING_RETURNS, CURVES),
)


@dataclass(frozen=True)
class Published100k:
    """Human-normalised aggregates over the 26 games, table of 57 games, as published.

    | field | meaning |
    | --- | --- |
    | iqm | over all runs; of the games' means where the number of runs is not known |
    | above_human | games |
    """

    agent: ReferenceAgent
    mean: float
    median: float
    iqm: float
    above_human: int


def _at_100k(
    name: str, column: str, source: str, runs: int | None, *aggregates: Any
) -> Published100k:
    agent = ReferenceAgent(name, column, FRAMES_100K, PROTOCOL_100K, source, runs)
    return Published100k(agent, *aggregates)


PUBLISHED_26 = (
    _at_100k("DER", "der", "van Hasselt et al. (2019)", None, 0.285, 0.161, 0.142, 2),
    _at_100k("OTRainbow", "otrainbow", "Kielak (2020)", None, 0.264, 0.204, 0.186, 1),
    _at_100k("CURL", "curl", "Agarwal et al. (2021)", 100, 0.261, 0.092, 0.113, 2),
    _at_100k("DrQ(ε)", "drq_eps", "Agarwal et al. (2021)", 100, 0.465, 0.313, 0.280, 3),
    _at_100k("SPR", "spr", "Agarwal et al. (2021)", 100, 0.616, 0.396, 0.337, 6),
    _at_100k("SR-SPR", "sr_spr", "D'Oro et al. (2023)", None, 1.271, 0.684, 0.700, 9),
    _at_100k("BBF", "bbf", "Schwarzer et al. (2023)", None, 2.247, 0.917, 1.139, 12),
    _at_100k("DreamerV3", "dreamerv3", "Hafner et al. (2023)", 5, 1.282, 0.487, 0.541, 7),
    _at_100k("STORM", "storm", "Zhang et al. (2023)", 5, 1.222, 0.425, 0.561, 9),
    _at_100k("DIAMOND", "diamond", "Alonso et al. (2024)", 5, 1.459, 0.373, 0.641, 11),
)
AGENTS_100K = tuple(row.agent for row in PUBLISHED_26)


def reference_agents(protocol: str) -> tuple[ReferenceAgent, ...]:
    """The agents whose scores stand next to those of runs under a protocol."""
    return AGENTS_100K if protocol == "atari100k" else REFERENCE_AGENTS


@dataclass(frozen=True)
class PublishedAggregate:
    """Human-normalised score over the 49 games, in per cent; None where none is given.

    | field | meaning |
    | --- | --- |
    | human_table | whose human scores normalise; None where that is not known |
    | recalled | the figure was remembered, not read in its source |
    """

    name: str
    frames: int
    mean: float | None
    median: float
    human_table: str | None
    protocol: str
    source: str
    recalled: bool = False


def _by_lee(name: str, frames: int, mean: float, median: float) -> PublishedAggregate:
    return PublishedAggregate(
        name, frames, mean, median, "nature2015", PAPER_PROTOCOL, EBU, recalled=True
    )


def _from_curves(name: str, mean: float, median: float) -> PublishedAggregate:
    return PublishedAggregate(
        name, 10_000_000, mean, median, "nature2015", TRAINING_RETURNS, CURVES
    )


PUBLISHED_49 = (
    PublishedAggregate(
        "DQN (Nature)", 200_000_000, 241.07, 93.52, "nature2015", PAPER_PROTOCOL, NATURE
    ),
    _by_lee("EBU", 10_000_000, 253.55, 51.55),
    _by_lee("EBU", 20_000_000, 347.99, 92.50),
    _by_lee("Prioritized DQN", 10_000_000, 156.57, 40.86),
    _by_lee("Retrace(λ)", 10_000_000, 93.77, 41.99),
    _by_lee("Optimality tightening", 10_000_000, 162.66, 49.42),
    _from_curves("DQN, RMSProp and Huber", 35.6, 12.2),
    _from_curves("DQN, Adam and MSE", 117.1, 28.0),
    _from_curves("Rainbow", 157.7, 57.3),
    _from_curves("QR-DQN", 272.9, 76.3),
    _from_curves("IQN", 274.8, 88.6),
    PublishedAggregate(
        "Fast Rainbow", 10_000_000, None, 205.7, None, "as in its source", "Schmidt, Schmied (2021)"
    ),
)
"""As collected in the literature, each under its own protocol; not made here."""
