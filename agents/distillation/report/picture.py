"""The picture of a distillation: score retention against inference cost."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Transform, offset_copy

from agents.distillation.report.rows import Row
from ebu.run.figures import add_legend

Cost = Literal["parameters", "multiply_adds", "p50_us"]
COSTS: dict[Cost, str] = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds for a state",
    "p50_us": "median latency in onnxruntime, µs",
}
"""Labels of the horizontal axes. Only latency differs between int8 and float32 files."""
PANEL_INCHES = (4.2, 3.6)
DPI = 110
METHOD_POINTS = 6
"""Distance between the methods of one student, which cost the same."""
LABEL_SIZE = 8


def picture(rows: Sequence[Row], *, weak: bool = False) -> bytes:
    """The figure as a PNG; `weak` is written at it of a teacher whose retention means little."""
    content = io.BytesIO()
    # Without the library's version: the same report has the same bytes.
    figure = draw(rows)
    if weak:
        figure.axes[0].set_ylabel(f"{figure.axes[0].get_ylabel()}, of a weak teacher")
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def draw(rows: Sequence[Row]) -> Figure:
    """A panel for each cost: retention, or scores if the teacher is no better than random play.

    Chosen students have large marks and their intervals over games, other seeds small marks;
    methods of a student are next to each other, around its cost. The line is the Pareto front. A
    policy whose cost is not known is left out of that panel.
    """
    costs = [cost for cost in COSTS if any(row[cost] is not None for row in rows)]
    relative = all(row["retention"] is not None for row in rows)
    methods = sorted({row["method"] for row in rows if row["method"] is not None})
    palette = colormaps["tab10" if len(methods) <= 10 else "tab20"]
    colours = {method: to_hex(palette(index % palette.N)) for index, method in enumerate(methods)}
    size = (max(6.5, PANEL_INCHES[0] * len(costs)), PANEL_INCHES[1] + 0.2)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, max(1, len(costs)), squeeze=False, sharey=True)[0]
    for panel, cost in zip(panels, costs, strict=False):
        _draw(panel, cost, rows, colours, relative)
    panels[0].set_ylabel("score retention, %" if relative else "mean score")
    add_legend(figure, _legend(rows, colours))
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of points (cost, retention), cheapest first."""
    found: list[tuple[float, float]] = []
    for cost, retained in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or retained > found[-1][1]:
            found.append((cost, retained))
    return found


def _draw(
    panel: Axes, cost: Cost, rows: Sequence[Row], colours: dict[str, str], relative: bool
) -> None:
    costs = [row[cost] or 0 for row in rows if row[cost] is not None]
    panel.set_xscale("log")
    subs = (1.0, 2.0, 5.0) if max(costs) > 8 * min(costs) else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    panel.xaxis.set_major_locator(LogLocator(subs=subs))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlabel(COSTS[cost])
    panel.grid(alpha=0.3)
    points = []
    offsets = _offsets(panel, [row for row in rows if row[cost] is not None])
    labelled: dict[tuple[str, bool], tuple[float, float]] = {}
    for row in rows:
        height = _height(row, relative)
        if row["kind"] == "floor":
            dotted = row["name"] == rows[0]["name"]
            panel.axhline(height, color="grey", linestyle=":" if dotted else "--", linewidth=1)
            continue
        at, method = row[cost], row["method"]
        is_int8 = row["kind"] == "int8"
        # An int8 file costs as many parameters and multiplications as the float32 one.
        if at is None or (is_int8 and cost != "p50_us"):
            continue
        colour = "black" if method is None else colours[method]
        large = row["chosen"] or method is None
        place = offsets[row["name"], method]
        if large and (interval := _interval(row, relative)) is not None:
            panel.plot([at, at], interval, color=colour, linewidth=1, alpha=0.6, transform=place)
            panel.update_datalim([(at, end) for end in interval])
        # Points moved aside do not count for the limits of the axes by themselves.
        panel.update_datalim([(at, height)])
        panel.plot(
            at,
            height,
            transform=place,
            marker="s" if is_int8 else "*" if method is None else "o",
            markersize=(12 if method is None and not is_int8 else 7) if large else 3,
            markerfacecolor="white" if is_int8 else colour,
            color=colour,
            alpha=1 if large else 0.5,
            # Baselines are drawn below other methods.
            zorder=2 if row["kind"] == "baseline" else 3,
        )
        if large:
            points.append((at, height))
            key = (row["name"], is_int8)
            if key not in labelled or height > labelled[key][1]:
                labelled[key] = (at, height)
    panel.plot(*zip(*front(points), strict=True), color="grey", linewidth=1, zorder=0)
    most = max(Counter(name for name, _ in offsets).values())
    panel.margins(x=0.2 + METHOD_POINTS * most / 2 / (72 * PANEL_INCHES[0]), y=0.1)
    _label(panel, [(name, point) for (name, _), point in labelled.items()])


def _offsets(panel: Axes, rows: Sequence[Row]) -> dict[tuple[str, str | None], Transform]:
    """The offset of each student and method, next to the student's other methods."""
    methods: dict[str, list[str | None]] = {}
    for row in rows:
        if row["method"] not in methods.setdefault(row["name"], []):
            methods[row["name"]].append(row["method"])
    return {
        (name, method): offset_copy(
            panel.transData,
            panel.figure,  # type: ignore[arg-type]
            x=METHOD_POINTS * (index - (len(found) - 1) / 2),
            units="points",
        )
        for name, found in methods.items()
        for index, method in enumerate(found)
    }


def _label(panel: Axes, named: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Write names next to points, where there is no other name if possible."""
    panel.autoscale_view()
    scale = 72 / panel.figure.dpi
    taken: list[tuple[float, float, float]] = []
    for name, point in named:
        x, y = (scale * at for at in panel.transData.transform(point))
        width = 0.6 * LABEL_SIZE * len(name)
        # Below to the right first: the line comes from the left and goes up.
        places = [(6.0, -11), (6.0, 5), (-6 - width, 5), (-6 - width, -11)]
        free = [
            (right, up)
            for right, up in places
            if all(
                abs(y + up - other_y) > LABEL_SIZE
                or x + right > other_x + other_width
                or x + right + width < other_x
                for other_x, other_y, other_width in taken
            )
        ]
        right, up = (free or places)[0]
        taken.append((x + right, y + up, width))
        panel.annotate(
            name, point, xytext=(right, up), textcoords="offset points", fontsize=LABEL_SIZE
        )


def _height(row: Row, relative: bool) -> float:
    if relative and row["retention"] is not None:
        return 100 * row["retention"]
    return row["evaluation"]["mean"]


def _interval(row: Row, relative: bool) -> list[float] | None:
    if not relative:
        return row["evaluation"]["interval_95"]
    retained = row["retention_95"]
    return None if retained is None else [100 * end for end in retained]


def _legend(rows: Sequence[Row], colours: dict[str, str]) -> list[Line2D]:
    def marker(shape: str, colour: str, label: str, face: str | None = None) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="",
            marker=shape,
            color=colour,
            markerfacecolor=face or colour,
            markersize=8,
            label=label,
        )

    handles = []
    if any(row[cost] is not None for row in rows if row["kind"] == "teacher" for cost in COSTS):
        handles.append(marker("*", "black", "teacher"))
    handles += [marker("o", colour, method) for method, colour in colours.items()]
    if any(row["kind"] == "int8" for row in rows):
        handles.append(marker("s", "black", "int8", "white"))
    floor = [row["name"] for row in rows if row["kind"] == "floor"]
    handles += [
        Line2D([], [], color="grey", linewidth=1, linestyle=":" if first else "--", label=name)
        for first, name in zip((True, False), floor, strict=False)
    ]
    return handles
