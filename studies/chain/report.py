"""The record, the table and the picture of the chain study."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ebu.run import markdown
from ebu.run.figures import write_figure
from studies.chain.study import GAMMA, Curve, Settings, stored_episode

# Probabilities whose updates are tabulated; 1 means that every run has learnt.
LEVELS = (0.5, 0.95, 1.0)


def record(settings: Settings, chains: dict[int, dict[str, Curve]]) -> dict[str, Any]:
    """All that was measured and all it depends on, in JSON values."""
    return {
        "settings": {
            "runs": settings.runs,
            "updates": settings.updates,
            "seed": settings.seed,
            "gamma": GAMMA,
        },
        "chains": {
            str(num_states): {
                "episode": visited(num_states),
                "methods": {method: _describe(curve) for method, curve in curves.items()},
            }
            for num_states, curves in chains.items()
        },
    }


def _describe(curve: Curve) -> dict[str, Any]:
    needed = {f"{level:.0%}": curve.updates_needed(level) for level in LEVELS}
    return {
        "runs": curve.runs,
        "learnt_runs": curve.learnt.tolist(),
        "interval_95": [end.round(6).tolist() for end in curve.interval],
        "updates_needed": {
            level: {"updates": each.updates, "interval_95": [each.earliest, each.latest]}
            for level, each in needed.items()
        },
    }


def visited(num_states: int) -> str:
    """The states of the stored episode in order, `s1 s2 s3 s2 s3 s4`."""
    episode = stored_episode(num_states)
    states = [*episode.states, episode.next_states[-1]]
    return " ".join(f"s{state + 1}" for state in states)


def table(chains: dict[int, dict[str, Curve]]) -> str:
    """Updates needed, as a Markdown table."""
    rows = []
    for num_states, curves in chains.items():
        for method, curve in curves.items():
            cells = []
            for level in LEVELS:
                needed = curve.updates_needed(level)
                cells.append(markdown.NONE if needed.updates is None else str(needed.updates))
                if curve.drawn and needed.latest is not None:
                    cells[-1] += f" [{needed.earliest}, {needed.latest}]"
            rows.append([num_states, method, *cells])
    return markdown.table(["states", "method", *(f"{level:.0%}" for level in LEVELS)], rows)


def draw(chains: dict[int, dict[str, Curve]], path: Path) -> None:
    """Write the picture: probability against updates, a panel for each chain."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = figure.subplots(len(chains), 1, sharex=True, sharey=True)
    for panel, (num_states, curves) in zip(panels, chains.items(), strict=True):
        for method, curve in curves.items():
            updates = np.arange(len(curve.learnt))
            (line,) = panel.step(updates, curve.probability, where="post", label=method)
            panel.fill_between(
                updates, *curve.interval, step="post", color=line.get_color(), alpha=0.3
            )
        panel.set_title(f"{num_states} states, stored episode {visited(num_states)}")
        panel.set_ylabel("P(optimal path learnt), 95 % interval")
        panel.grid(alpha=0.3)
    ticks = [1, 2, 5, 10, 20, 50, 100]
    panels[-1].set_xscale("log")
    panels[-1].set_xticks(ticks, map(str, ticks))
    panels[-1].set_xlabel("updates (one transition each)")
    panels[-1].legend(loc="upper left")
    write_figure(figure, path, dpi=120)
