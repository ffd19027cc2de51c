"""Make the tables of pages that compare variants of agents, and their reports, from committed runs.

    .venv/bin/python -m docs.results.variants

A page names its folder in a comment, `<!-- variants: few_frames -->`; what stands from there to the
next `<!-- end -->` is replaced. A folder of it, `report`, gets what `report.py` says of the runs.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from docs.results.marked import replace_marked
from ebu.commands.report import write_report
from ebu.commands.reporting.published import AGENTS_100K, FRAMES_100K, normalised, references
from ebu.run.markdown import NONE, table
from ebu.statistics import mean_interval

RESULTS = Path(__file__).parent
ROOT = RESULTS.parents[1]
NAMED = re.compile(r"(?P<game>\w+?)-(?P<variant>.+)-seed(?P<seed>\d+)")
"""The directory of a run: game, agent and variant, seed."""
WINDOW = 100_000
"""Frames at the end of a run over which predicted and earned values are averaged."""
LONGEST = FRAMES_100K + 10_000
"""Published agents are left out next to longer runs; a run ends with a step of all its games."""


@dataclass(frozen=True)
class Run:
    """A finished run: its returns, games that were cut, and values before it ended."""

    game: str
    variant: str
    seed: int
    frames: int
    returns: tuple[float, ...]
    cut: int
    predicted: float
    earned: float


def main() -> None:
    """Write the tables of all pages, and the reports."""
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text()
        if (written := with_tables(text)) != text:
            path.write_text(written)
    for report in sorted(RESULTS.glob("*/report")):
        write_report([report.parent.relative_to(ROOT)], report)


def with_tables(text: str) -> str:
    """A page with its tables made again."""
    return replace_marked(
        text, r"variants: (?P<folder>\w+)", lambda found: tables(RESULTS / found["folder"])
    )


def read_runs(folder: Path) -> list[Run]:
    """All committed runs of a folder."""
    return [
        run_of(path.parent, dict(found.groupdict()))
        for path in sorted(folder.glob("*/evaluation.json"))
        if (found := NAMED.fullmatch(path.parent.name))
    ]


def run_of(directory: Path, named: dict[str, Any]) -> Run:
    evaluation = json.loads((directory / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["frames"] > lines[-1]["frames"] - WINDOW]
    return Run(
        named["game"],
        named["variant"],
        int(named["seed"]),
        evaluation["trained_frames"],
        tuple(evaluation["returns"]),
        evaluation["capped_games"],
        mean(line["q/predicted"] for line in last if "q/predicted" in line),
        mean(line["q/earned"] for line in last if "q/earned" in line),
    )


def tables(folder: Path) -> str:
    """Markdown tables: scores of variants and published agents, ranks, values at the end."""
    runs = read_runs(folder)
    games = sorted({run.game for run in runs})
    variants = list(dict.fromkeys(run.variant for run in runs))
    cells = {
        (variant, game): [run for run in runs if (run.variant, run.game) == (variant, game)]
        for variant in variants
        for game in games
    }
    scores = [[f"`{name}`", *(score(cells[name, game]) for game in games)] for name in variants]
    known = {game: references(game) for game in games}
    randoms = [None if one is None else one.random for one in known.values()]
    humans = [None if one is None else one.human("57table") for one in known.values()]
    scores.append(["random play", *map(number, randoms)])
    if all(run.frames <= LONGEST for run in runs):
        scores += [
            [f"{agent.name}, published", *(number(agent.score(game)) for game in games)]
            for agent in AGENTS_100K
        ]
    scores.append(["human", *map(number, humans)])
    values = [[f"`{name}`", *(value(cells[name, game]) for game in games)] for name in variants]
    header = ["", *(f"`{game}`" for game in games)]
    return (
        "Weights at the end of a run, 100 games: mean and 95 % interval, over seeds where there\n"
        f"are several, over games for a single one:\n\n{table(header, scores)}\n\n"
        f"{rank_table(runs)}"
        f"{gain_table(runs)}"
        f"Values in the last {WINDOW:,} frames, predicted / earned, and evaluation games, of 100,\n"
        f"that were cut at the protocol's limit:\n\n{table(header, values)}\n"
    )


def score(runs: Sequence[Run]) -> str:
    """The mean over seeds and its interval, over the games of a single one."""
    if not runs:
        return NONE
    means = [mean(run.returns) for run in runs]
    interval = mean_interval(np.array(means if len(means) > 1 else runs[0].returns))
    of_seeds = f" ({len(means)} seeds)" if len(means) > 1 else ""
    assert interval is not None
    return f"{mean(means):,.0f} [{interval[0]:,.0f}, {interval[1]:,.0f}]{of_seeds}"


def value(runs: Sequence[Run]) -> str:
    if not runs:
        return NONE
    predicted, earned = mean(run.predicted for run in runs), mean(run.earned for run in runs)
    return f"{predicted:.1f} / {earned:.1f}, {mean(run.cut for run in runs):g} cut"


def rank_table(runs: Sequence[Run]) -> str:
    """Ranks of all variants, by their mean; empty if no game and seed was played with all."""
    places = ranks(runs)
    if not places:
        return ""
    header = ["", "mean", *(f"`{game}`, seed {seed}" for game, seed in places)]
    means = {run.variant: mean(of[run.variant] for of in places.values()) for run in runs}
    rows = [
        [f"`{name}`", f"{means[name]:.1f}", *(f"{of[name]:g}" for of in places.values())]
        for name in sorted(means, key=means.__getitem__)
    ]
    return (
        "Ranks by score, 1 for the highest, of the games and seeds that all variants have played:"
        f"\n\n{table(header, rows)}\n\n"
    )


def ranks(runs: Sequence[Run]) -> dict[tuple[str, int], dict[str, float]]:
    """Of each game and seed that was played with every variant: ranks, 1 for the highest score.

    Equal scores share the mean of their ranks.
    """
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for run in runs:
        scores.setdefault((run.game, run.seed), {})[run.variant] = mean(run.returns)
    variants = {run.variant for run in runs}
    return {
        cell: dict(zip(of_cell, rankdata([-score for score in of_cell.values()]), strict=True))
        for cell, of_cell in sorted(scores.items())
        if of_cell.keys() == variants
    }


def gain_table(runs: Sequence[Run]) -> str:
    """What ingredients gain, added alone to `base` and left out of `all`, in ranks and scores.

    An ingredient has two variants, its name and `no_` before it. Seeds of a variant count by their
    mean. A game in which a variant is missing does not count; empty if none is left.
    """
    played: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        name = run.variant.removeprefix("ebu-")
        played.setdefault(run.game, {}).setdefault(name, []).append(mean(run.returns))
    names = {name for of_game in played.values() for name in of_game}
    ingredients = sorted(name for name in names if f"no_{name}" in names)
    compared = ["base", "all", *ingredients, *(f"no_{name}" for name in ingredients)]
    scores = {
        game: np.array([mean(of_game[name]) for name in compared])
        for game, of_game in played.items()
        if of_game.keys() >= set(compared)
    }
    if not ingredients or not scores:
        return ""
    ranked = [rankdata(of_game) for of_game in scores.values()]
    shares = [human_shares(game, of_game) for game, of_game in scores.items()]
    columns = []
    for measured, highest in ((np.array(ranked), len(compared) - 1), (np.array(shares), 1)):
        base, everything, alone, without = np.split(measured, [1, 2, 2 + len(ingredients)], axis=1)
        columns += [(alone - base, highest), (everything - without, highest)]
    rows = [
        [
            f"`{name}`",
            *(gain(games[:, row] / highest) for games, highest in columns),
            # Sums of ranks, which are exact: gains that cancel are none.
            "yes" if min(games[:, row].sum() for games, _ in columns[:2]) > 0 else "no",
        ]
        for row, name in enumerate(ingredients)
    ]
    header = ["", "added", "left out", "added, score", "left out, score", "kept"]
    return (
        f"Gains in {len(scores)} games: differences of ranks, from 0 to 1 within a game, and of\n"
        "human-normalised scores, with 95 % intervals over games:\n\n"
        f"{table(header, rows)}\n\n"
    )


def human_shares(game: str, scores: np.ndarray) -> np.ndarray:
    """Scores (n,) as shares of the way from random play to the human of the 57-game table."""
    return np.array([normalised(game, score, "57table") for score in scores], float)


def gain(games: np.ndarray) -> str:
    """The mean of differences (games,) and its interval."""
    interval = mean_interval(games)
    limits = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return f"{games.mean():+.2f}{limits}"


def number(score: float | None) -> str:
    return NONE if score is None else f"{score:,.0f}"


if __name__ == "__main__":
    main()
