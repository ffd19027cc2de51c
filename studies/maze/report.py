"""The tables and the picture of the maze study, from its result files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from ebu.run.figures import write_figure
from ebu.run.markdown import table

RESAMPLES = 5_000
COLOURS = {
    "one-step": "tab:red",
    "n-step": "tab:green",
    "ebu-0": "tab:orange",
    "ebu-0.5": "#9ecae1",
    "ebu-0.75": "#4292c6",
    "ebu-1": "#08306b",
}
TICKS = (1, 2, 3, 5, 10, 20, 30, 50)
PAIRS = (
    ("ebu-0", "one-step"),
    ("ebu-0.5", "one-step"),
    ("ebu-0.75", "one-step"),
    ("ebu-1", "one-step"),
    ("ebu-1", "n-step"),
    ("ebu-0.5", "ebu-1"),
    ("ebu-0.75", "ebu-1"),
)
"""Methods compared maze by maze."""
SETTING = ("walls", "moves")


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The last evaluations as Markdown."""
    last = [result["evaluations"][-1] for result in results]
    lines = [
        f"Relative length after {last[0]['agent_steps']:,} agent steps over "
        f"{len(results[0]['shortest_paths'])} mazes for each setting, with 95 % bootstrap "
        "intervals over mazes. *best*: the best policy there is.",
    ]
    for kind, title in (
        ("exploring", f"Exploring as in training, ε = {last[0]['epsilon']:.2f}"),
        ("greedy", "Greedy"),
    ):
        for statistic in (np.mean, np.median):
            rows = []
            for result, evaluation in zip(results, last, strict=True):
                best = result["best_greedy"] if kind == "greedy" else evaluation["best_exploring"]
                cells = [_with_interval(statistic, evaluation[kind][name]) for name in COLOURS]
                rows.append([*_setting(result), f"{statistic(best):.2f}", *cells])
            lines += ["", f"### {title}: {statistic.__name__}", ""]
            lines.append(table([*SETTING, "best", *COLOURS], rows))
    rows = []
    for result, evaluation in zip(results, last, strict=True):
        lengths = evaluation["exploring"]
        cells = [
            _with_interval(_ratio_of_means, lengths[one], lengths[other]) for one, other in PAIRS
        ]
        rows.append([*_setting(result), *cells])
    lines += ["", "### Exploring: ratio of the means", ""]
    lines.append(table([*SETTING, *(f"{one} / {other}" for one, other in PAIRS)], rows))
    return "\n".join(lines) + "\n"


def _setting(result: dict[str, Any]) -> list[str]:
    setting = result["made_with"]["setting"]
    return [f"{setting['density']} %", _moves(setting)]


def _moves(setting: dict[str, Any]) -> str:
    return "stochastic" if setting["stochastic"] else "deterministic"


def _ratio_of_means(lengths: np.ndarray, others: np.ndarray, axis: int = -1) -> Any:
    return lengths.mean(axis=axis) / others.mean(axis=axis)


def _with_interval(statistic: Callable[..., Any], *samples: Sequence[float]) -> str:
    arrays = [np.array(sample) for sample in samples]
    low, high = _interval(statistic, *arrays)
    return f"{statistic(*arrays):.2f} [{low:.2f}, {high:.2f}]"


def _interval(statistic: Callable[..., Any], *samples: np.ndarray) -> tuple[Any, Any]:
    """95 % percentile bootstrap interval over mazes, the last axis; of all samples the same."""
    bootstrap = scipy.stats.bootstrap(
        samples,
        statistic,
        axis=-1,
        n_resamples=RESAMPLES,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return bootstrap.confidence_interval.low, bootstrap.confidence_interval.high


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean relative length over agent steps, a panel for each setting; 95 % intervals at the end.

    The intervals of all evaluations would cover each other.
    """
    columns = len(results) // 2
    figure = Figure(figsize=(1.5 + 3.5 * columns, 8.0), layout="constrained")
    panels = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    for panel, result in zip(panels.T.reshape(-1), results, strict=True):
        evaluations = result["evaluations"]
        thousands = [evaluation["agent_steps"] / 1_000 for evaluation in evaluations]
        for place, (name, colour) in enumerate(COLOURS.items(), start=2):
            lengths = np.array([evaluation["exploring"][name] for evaluation in evaluations])
            means = lengths.mean(axis=1)
            panel.plot(thousands, means, color=colour, label=name)
            low, high = _interval(np.mean, lengths[-1])
            x = thousands[-1] * (1 + 0.02 * place)
            panel.plot([x, x], [low, high], color=colour, linewidth=1.2)
            panel.plot(x, means[-1], color=colour, marker="o", markersize=4)
        best = [np.mean(evaluation["best_exploring"]) for evaluation in evaluations]
        panel.plot(thousands, best, color="black", linestyle=":", label="best policy")
        setting = result["made_with"]["setting"]
        panel.set_title(f"{setting['density']} % walls, {_moves(setting)}")
        panel.set_yscale("log")
        panel.set_yticks(TICKS, map(str, TICKS))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel("thousand agent steps; after the last: 95 % intervals", fontsize="medium")
    figure.supylabel("mean relative length, exploring as in training", fontsize="medium")
    write_figure(figure, path, dpi=110)
