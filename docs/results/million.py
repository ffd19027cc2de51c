"""Compare today's default with the former one after a million frames, from committed runs.

    .venv/bin/python -m docs.results.million

Replaces in README.md of this folder what stands between `<!-- million -->` or `<!-- learning -->`
and `<!-- end -->`.
"""

import json
import re
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from docs.results.marked import remade
from ebu.commands.reporting.published import AGENTS_100K, FRAMES_100K
from ebu.run.markdown import NONE, table
from ebu.statistics import difference_interval, mean_interval

RESULTS = Path(__file__).parent
PAGE = RESULTS / "README.md"
GAMES = ("breakout", "pong")
FILES = {
    "former": ("data/{}-ebu-seed*.evaluation.json", "million_former/{}-*/evaluation.json"),
    "today's": ("million/{}-*/evaluation.json",),
}
"""Where the evaluations of each default are, by game."""
POINTS = range(100_000, 1_000_001, 100_000)
"""Frames of the evaluations in training."""


def main() -> None:
    """Write the tables of the page."""
    PAGE.write_text(with_tables(PAGE.read_text()))


def with_tables(text: str) -> str:
    """The page with its tables made again."""
    text = remade(text, "million", lambda _: tables(RESULTS))
    return remade(text, "learning", lambda _: learning(RESULTS))


def tables(folder: Path) -> str:
    """Markdown tables: the score of each run, and the difference between the defaults."""
    of_runs, of_games = [], []
    for game in GAMES:
        means = {}
        for name in FILES:
            evaluations = read_evaluations(folder, game, name)
            means[name] = [mean(each["returns"]) for each in evaluations.values()]
            of_runs += [
                [
                    game.title(),
                    name,
                    seed,
                    score(each["returns"]),
                    f"{100 * each['human_normalised']:.1f} %",
                ]
                for seed, each in evaluations.items()
            ]
        former, todays = means.values()
        interval = difference_interval(np.array(todays), np.array(former))
        difference = NONE
        if interval is not None:
            difference = f"{mean(todays) - mean(former):+.2f} {brackets(interval)}"
        of_games.append([game.title(), *map(score, (former, todays)), difference])
    runs = ["game", "default", "seed", "100 games, 95 % over games", "human-normalised"]
    games = ["game", "former, 95 % over seeds", "today's", "difference, Welch's 95 % over seeds"]
    return f"{table(runs, of_runs)}\n\n{table(games, of_games)}\n"


def learning(folder: Path) -> str:
    """Markdown tables: evaluations in training of today's default, and published scores at 400k."""
    curves, at_100k = [], []
    for game in GAMES:
        runs = by_seed(folder, [f"million/{game}-*/evaluations.jsonl"])
        means = {seed: read_curve(path) for seed, path in runs.items()}
        curves += [
            [game.title(), seed, *(f"{curve[frames]:.1f}" for frames in POINTS)]
            for seed, curve in means.items()
        ]
        ours = score([curve[FRAMES_100K] for curve in means.values()])
        at_100k.append([game.title(), *(agent.score(game) for agent in AGENTS_100K), ours])
    points = [f"{frames / 1e6:g}M" for frames in POINTS]
    agents = ["game", *(agent.name for agent in AGENTS_100K), "today's default"]
    return f"{table(['game', 'seed', *points], curves)}\n\n{table(agents, at_100k)}\n"


def read_curve(path: Path) -> dict[int, float]:
    """The mean of each evaluation of a run in training, by the frames it was due at."""
    lines = map(json.loads, path.read_text().splitlines())
    return {round(line["frames"], -5): line["mean"] for line in lines}


def read_evaluations(folder: Path, game: str, default: str) -> dict[int, dict[str, Any]]:
    """The final evaluations of a default's runs on a game, by seed."""
    paths = by_seed(folder, [each.format(game) for each in FILES[default]])
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
