"""Compare the second default with the first after a million frames, from committed runs.

    .venv/bin/python -m docs.results.million

Replaces in README.md and docs/results/million.md what stands between `<!-- million -->`,
`<!-- defaults -->` or `<!-- learning -->` and `<!-- end -->`.
"""

import csv
import json
import re
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from docs.results.marked import replace_marked
from ebu.commands.reporting.published import AGENTS_100K, FRAMES_100K, references
from ebu.run.markdown import NONE, table
from ebu.statistics import difference_interval, mean_interval

RESULTS = Path(__file__).parent
PAGES = (RESULTS.parents[1] / "README.md", RESULTS / "million.md")
COMPARED = ("breakout", "pong")
"""The games that both defaults have played."""
GAMES = (*COMPARED, "freeway", "seaquest")
FIRST, SECOND = "`ebu`, first default", "`ebu`, second default"
FILES = {
    FIRST: ("data/{}-ebu-seed*.evaluation.json", "million_former/{}-*/evaluation.json"),
    SECOND: ("million/{}-ebu-*/evaluation.json",),
    "`dqn`, today's default": ("million/{}-dqn-*/evaluation.json",),
}
"""Where the evaluations of each agent are, by game."""
POINTS = range(100_000, 1_000_001, 100_000)
"""Frames of the evaluations in training."""
EARLY = RESULTS / "data" / "dopamine_early.csv"
"""Returns of training games that the authors of Dopamine published, by agent and frames."""
EARLY_AGENTS = {
    "DQN": "DQN, RMSProp",
    "DQN (Adam + MSE in JAX)": "DQN, Adam",
    "C51": "C51",
    "Rainbow": "Rainbow",
    "Quantile (JAX)": "QR-DQN",
    "IQN": "IQN",
}


def main() -> None:
    """Write the tables of both pages."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


def with_tables(text: str) -> str:
    """A page with its tables made again."""
    text = replace_marked(text, "million", lambda _: scores(RESULTS))
    text = replace_marked(text, "defaults", lambda _: comparison(RESULTS))
    return replace_marked(text, "learning", lambda _: learning(RESULTS))


def scores(folder: Path) -> str:
    """A Markdown table: the final score of each run."""
    rows = [
        [
            game.title(),
            name,
            seed,
            score(each["returns"]),
            f"{100 * each['human_normalised']:.1f} %",
        ]
        for game in GAMES
        for name in FILES
        for seed, each in read_evaluations(folder, game, name).items()
    ]
    header = ["game", "agent", "seed", "100 games, 95 % over games", "human-normalised"]
    return f"{table(header, rows)}\n"


def comparison(folder: Path) -> str:
    """A Markdown table: the difference between the defaults."""
    rows = []
    for game in COMPARED:
        first, second = (
            [mean(each["returns"]) for each in read_evaluations(folder, game, name).values()]
            for name in (FIRST, SECOND)
        )
        interval = difference_interval(np.array(second), np.array(first))
        difference = NONE
        if interval is not None:
            difference = f"{mean(second) - mean(first):+.2f} {brackets(interval)}"
        seeds = f"{len(first)} and {len(second)}"
        rows.append([game.title(), seeds, *map(score, (first, second)), difference])
    header = ["game", "seeds", "first default", "second default", "difference, Welch's interval"]
    return f"{table(header, rows)}\n"


def learning(folder: Path) -> str:
    """Markdown tables: evaluations of the second default in training, and what was published."""
    curves, at_100k, games = [], [], []
    for game in GAMES:
        runs = by_seed(folder, [f"million/{game}-ebu-*/evaluations.jsonl"])
        means = {seed: read_curve(path) for seed, path in runs.items()}
        curves += [
            [game.title(), seed, *(f"{curve[frames]:.1f}" for frames in POINTS)]
            for seed, curve in means.items()
        ]
        if means:
            games.append(game)
            ours = score([curve[FRAMES_100K] for curve in means.values()])
            at_100k.append([game.title(), *(agent.score(game) for agent in AGENTS_100K), ours])
    points = [f"{frames / 1e6:g}M" for frames in POINTS]
    agents = ["game", *(agent.name for agent in AGENTS_100K), "second default"]
    return (
        f"{table(['game', 'seed', *points], curves)}\n\n{table(agents, at_100k)}\n\n"
        f"{early(games)}\n"
    )


def early(games: list[str]) -> str:
    """A Markdown table: published returns between 1 and 2 million frames, and their median."""
    with EARLY.open() as file:
        rows = {row["game"]: row for row in csv.DictReader(file)}
    shares: dict[str, list[float]] = {agent: [] for agent in EARLY_AGENTS}
    for game, row in rows.items():
        known = references(game)
        assert known is not None
        low, high = known.random, known.human("57table")
        assert low is not None
        assert high is not None
        for agent, of_games in shares.items():
            of_games.append((float(row[f"{agent}|1-2M"]) - low) / (high - low))
    body = [
        [game.title(), *(rows[game][f"{agent}|1-2M"] for agent in EARLY_AGENTS)] for game in games
    ]
    medians = [f"{median(of_games):.1%}" for of_games in shares.values()]
    body.append([f"median of {len(rows)} games, human-normalised", *medians])
    return table(["game", *EARLY_AGENTS.values()], body)


def read_curve(path: Path) -> dict[int, float]:
    """The mean of each evaluation of a run in training, by the frames it was due at."""
    lines = map(json.loads, path.read_text().splitlines())
    return {round(line["frames"], -5): line["mean"] for line in lines}


def read_evaluations(folder: Path, game: str, agent: str) -> dict[int, dict[str, Any]]:
    """The final evaluations of an agent's runs on a game, by seed."""
    paths = by_seed(folder, [each.format(game) for each in FILES[agent]])
    return {seed: json.loads(path.read_text()) for seed, path in paths.items()}


def by_seed(folder: Path, patterns: list[str]) -> dict[int, Path]:
    """The files that fit, by the seed in their path."""
    found = {}
    for path in chain.from_iterable(map(folder.glob, patterns)):
        seed = re.search(r"seed(\d+)", str(path.relative_to(folder)))
        assert seed is not None
        found[int(seed[1])] = path
    return dict(sorted(found.items()))


def score(scores: list[float]) -> str:
    """The mean and its interval, which one score has not."""
    if not scores:
        return NONE
    interval = mean_interval(np.array(scores))
    return f"{mean(scores):.2f}" + (f" {brackets(interval)}" if interval else "")


def brackets(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"[{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
