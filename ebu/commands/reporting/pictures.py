"""The pictures of a report: learning curves and performance profiles."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ebu.commands.reporting.aggregates import Profile, Statistics
from ebu.commands.reporting.comparison import Comparison
from ebu.commands.reporting.runs import Curve
from ebu.run.directory import directory_name
from ebu.run.figures import add_legend, set_title, write_figure
from ebu.statistics import mean_interval

CURVE_POINTS = 200
MOST_COLUMNS = 7
PANEL_INCHES = (3.4, 2.6)
TITLE_INCHES = 2.3
DPI = 110


def write_pictures(
    comparison: Comparison, groups: Sequence[Statistics], curves: Mapping[Path, Curve], out: Path
) -> dict[str, str]:
    """Write all pictures; file names by training protocol (curves) and by group (profiles)."""
    pictures: dict[str, str] = {}
    for protocol, games in comparison.curves.items():
        drawn: dict[str, dict[str, list[Curve]]] = {}
        for game, methods in games.items():
            for name, runs in methods.items():
                found = [curve for run in runs if len((curve := curves[run.directory])[0])]
                if found:
                    drawn.setdefault(game, {})[name] = found
        if drawn:
            pictures[protocol] = f"curves-{directory_name(protocol)}.png"
            write_figure(draw_curves(drawn), out / pictures[protocol])
    for of in groups:
        if of.profiles:
            name = of.group.name
            pictures[name] = f"profile-{directory_name(name)}.png"
            write_figure(draw_profiles(of.thresholds, of.profiles), out / pictures[name])
    return pictures


def draw_curves(games: dict[str, dict[str, list[Curve]]]) -> Figure:
    """Learning curves by game, a panel each, and method; none of them empty.

    The mean over seeds with its 95 % interval (Student's t) as far as all of them have come, and
    each seed by itself as a thin line.
    """
    colours = colours_of(sorted({name for methods in games.values() for name in methods}))
    count = len(games)
    columns = min(count, MOST_COLUMNS if count > 12 else 3)
    rows = -(-count // columns)
    width, height = PANEL_INCHES
    # Room for the labels of a single panel.
    size = (max(6.5, width * columns), height * rows + 0.7)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    for panel, (game, methods) in zip(panels.flat, sorted(games.items()), strict=False):
        set_title(panel, game, TITLE_INCHES)
        panel.grid(alpha=0.3)
        _draw_panel(panel, methods, colours)
    add_legend(
        figure,
        [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()],
    )
    figure.supxlabel("million frames")
    figure.supylabel("mean raw return\nof the last 100 training games")
    return figure


def _draw_panel(panel: Axes, methods: dict[str, list[Curve]], colours: dict[str, str]) -> None:
    for name, of_method in methods.items():
        one = len(of_method) == 1
        for frames, returns in of_method:
            panel.plot(
                frames / 1e6,
                returns,
                color=colours[name],
                linewidth=2.0 if one else 0.8,
                alpha=1.0 if one else 0.4,
            )
    # The interval of two seeds may be many times as high as the curves: it does not set the scale.
    limits = panel.get_ylim()
    for name, of_method in methods.items():
        if len(of_method) > 1:
            grid, means, low, high = mean_curve(of_method)
            panel.plot(grid / 1e6, means, color=colours[name], linewidth=2.0)
            panel.fill_between(grid / 1e6, low, high, color=colours[name], alpha=0.2, linewidth=0)
    panel.set_ylim(limits)


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames, mean, and its 95 % interval's low and high end, (T,) each, over two or more seeds.

    Curves (frames, returns) are interpolated linearly between the last of their beginnings and
    the first of their ends, so that every point is of all seeds.
    """
    begin = max(frames[0] for frames, _ in curves)
    end = max(begin, min(frames[-1] for frames, _ in curves))
    grid = np.linspace(begin, end, CURVE_POINTS)
    returns = np.stack([np.interp(grid, *curve) for curve in curves])
    bounds = [mean_interval(at_a_point) or (np.nan, np.nan) for at_a_point in returns.T]
    low, high = np.array(bounds).T
    return grid, returns.mean(axis=0), low, high


def draw_profiles(thresholds: np.ndarray, profiles: Sequence[Profile]) -> Figure:
    """Share of runs above each human-normalised score, with pointwise 95 % intervals."""
    colours = colours_of([profile.name for profile in profiles])
    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    lines = []
    for profile in profiles:
        colour = colours[profile.name]
        lines += panel.step(
            thresholds, profile.shares, where="post", color=colour, label=profile.name
        )
        if profile.low is not None and profile.high is not None:
            panel.fill_between(
                thresholds,
                profile.low,
                profile.high,
                step="post",
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
    panel.set_xlabel("human-normalised score τ (1: human)")
    panel.set_ylabel("share of runs with a score above τ")
    panel.set_xlim(thresholds[0], thresholds[-1])
    panel.set_ylim(0, 1.02)
    panel.axvline(1, color="grey", linestyle=":")
    panel.grid(alpha=0.3)
    add_legend(figure, lines)
    return figure


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same in every panel."""
    cycle = [f"C{index}" for index in range(10)]
    if len(names) > len(cycle):
        cycle = [to_hex(colour) for colour in colormaps["tab20"](range(20))]
    return {name: cycle[index % len(cycle)] for index, name in enumerate(names)}
