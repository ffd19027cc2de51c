"""Frames that runs needed to reach shares of the human's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebu.commands.reporting.comparison import Group
from ebu.commands.reporting.published import normalised
from ebu.commands.reporting.runs import Curve

SHARES = (0.1, 0.5, 1.0)
"""Human-normalised scores that are looked for."""


@dataclass(frozen=True)
class Milestones:
    """When a method's runs of a game reached the shares.

    | field | meaning |
    | --- | --- |
    | frames | by share, of each seed that reached it: the first point of its learning curve |
    | runs | all seeds |
    """

    game: str
    method: str
    frames: dict[float, list[int]]
    runs: int


def milestones(group: Group, curves: Mapping[Path, Curve], table: str) -> list[Milestones]:
    """Every method in every game with a human score in a table.

    The mean return of the last 100 training games counts, under the rules of training.
    """
    found = []
    for game in group.games:
        if normalised(game, 0.0, table) is None:
            continue
        for name, games in group.methods.items():
            runs = games.get(game, [])
            if not runs:
                continue
            reached: dict[float, list[int]] = {share: [] for share in SHARES}
            for run in runs:
                frames, returns = curves[run.directory]
                scores = np.array([normalised(game, each, table) for each in returns])
                for share, of_seeds in reached.items():
                    above = np.flatnonzero(scores >= share)
                    if len(above):
                        of_seeds.append(int(frames[above[0]]))
            found.append(Milestones(game, name, reached, len(runs)))
    return found
