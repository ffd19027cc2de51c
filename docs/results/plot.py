"""Draw the training curves of committed runs (their metrics.jsonl).

python -m docs.results.plot    writes curves, agents, ablation and defaults.png in docs/pictures/
"""

import json
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent
PICTURES = RESULTS.parent / "pictures"
GAMES, AGENTS = ("breakout", "pong"), {"ebu": "tab:blue", "dqn": "tab:orange"}
RETURNS = "mean raw return\nof the last 100 training games"


def curve(path: Path) -> tuple[list[float], list[float]]:
    """Millions of frames, and the mean raw return of the last 100 training games at them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    points = [
        (line["frames"] / 1e6, line["train/return_last_100_games"])
        for line in lines
        if "train/return_last_100_games" in line
    ]
    frames, returns = zip(*points, strict=True)
    return list(frames), list(returns)


def draw(panel: Axes, pattern: str, colour: str, label: str, width: float = 1.5) -> None:
    """All seeds of a method, a line each; the pattern is of their files in this folder."""
    for number, path in enumerate(sorted(RESULTS.glob(pattern))):
        panel.plot(*curve(path), color=colour, label=None if number else label, linewidth=width)


def write(figure: Figure, panels: Iterable[Axes], name: str) -> None:
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(loc="upper left", fontsize="small")
    figure.supxlabel("million frames")
    figure.supylabel(RETURNS)
    figure.savefig(PICTURES / name, dpi=120)


def draw_games(name: str, *methods: tuple[str, str, str]) -> None:
    """A panel for each game; a method is its files, with {} for the game, a colour and a label."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(GAMES))
    for panel, game in zip(panels, GAMES, strict=True):
        for pattern, colour, label in methods:
            draw(panel, pattern.format(game), colour, label)
        panel.set_title(game)
    write(figure, panels, name)


def draw_comparison(folder: str, rows: int, size: tuple[float, float]) -> None:
    """Each method of a folder in a panel of its own, with ebu and dqn for comparison."""
    paths = (RESULTS / "data" / folder).glob("*-seed0.jsonl")
    names = sorted({path.name.removesuffix("-seed0.jsonl") for path in paths} - set(AGENTS))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, -(-len(names) // rows), sharex=True, sharey=True, squeeze=False)
    for panel in grid.flat[len(names) :]:
        panel.remove()
    panels = grid.flat[: len(names)]
    for panel, name in zip(panels, names, strict=True):
        for agent, colour in AGENTS.items():
            draw(panel, f"data/agents/{agent}-seed*.jsonl", colour, agent, width=0.8)
        draw(panel, f"data/{folder}/{name}-seed*.jsonl", "tab:green", name, width=2)
    write(figure, panels, f"{folder}.png")


if __name__ == "__main__":
    draw_games(
        "curves.png",
        *((f"data/{{}}-{name}-seed*.jsonl", colour, name) for name, colour in AGENTS.items()),
    )
    draw_games(
        "defaults.png",
        ("million/{}-ebu-*/metrics.jsonl", "tab:blue", "second default"),
        ("data/{}-ebu-seed*.jsonl", "tab:orange", "first default"),
        ("million_former/{}-*/metrics.jsonl", "tab:orange", ""),
    )
    draw_comparison("agents", rows=2, size=(13, 6))
    draw_comparison("ablation", rows=1, size=(15, 3.6))
