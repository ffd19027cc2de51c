"""Compare today's default with the former one after a million frames, from committed runs.

    .venv/bin/python -m docs.results.million

Replaces in README.md of this folder what stands between `<!-- million -->` and `<!-- end -->`.
"""

import json
import re
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from docs.results.marked import remade
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


def main() -> None:
    """Write the tables of the page."""
    PAGE.write_text(with_tables(PAGE.read_text()))


def with_tables(text: str) -> str:
    """The page with its tables made again."""
    return remade(text, "million", lambda _: tables(RESULTS))


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


def read_evaluations(folder: Path, game: str, default: str) -> dict[int, dict[str, Any]]:
    """The final evaluations of a default's runs on a game, by seed."""
    found = {}
    for path in chain.from_iterable(folder.glob(each.format(game)) for each in FILES[default]):
        seed = re.search(r"seed(\d+)", str(path.relative_to(folder)))
        assert seed is not None
        found[int(seed[1])] = json.loads(path.read_text())
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
