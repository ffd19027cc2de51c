"""Draw the training curves of the runs in data/ (their metrics.jsonl, as committed).

python docs/results/plot.py    writes curves.png, agents.png and ablation.png in docs/pictures/
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DATA = Path(__file__).parent / "data"
PICTURES = Path(__file__).parent.parent / "pictures"
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
    """All seeds of a method, a line each."""
    for number, path in enumerate(sorted(DATA.glob(pattern))):
        panel.plot(*curve(path), color=colour, label=None if number else label, linewidth=width)


def finish(figure: Figure, name: str) -> None:
    for panel in figure.axes:
        panel.grid(alpha=0.3)
        panel.legend(loc="upper left", fontsize="small")
    figure.supxlabel("million frames")
    figure.supylabel(RETURNS)
    figure.savefig(PICTURES / name, dpi=120)


def draw_first_million() -> None:
    figure, panels = plt.subplots(1, len(GAMES), figsize=(10, 4), layout="constrained")
    for panel, game in zip(panels, GAMES, strict=True):
        for agent, colour in AGENTS.items():
            draw(panel, f"{game}-{agent}-seed*.jsonl", colour, agent)
        panel.set_title(game)
    finish(figure, "curves.png")


def draw_agents() -> None:
    """Each agent in a panel of its own, with ebu and dqn for comparison."""
    paths = (DATA / "agents").glob("*-seed0.jsonl")
    others = sorted({path.name.removesuffix("-seed0.jsonl") for path in paths} - set(AGENTS))
    figure, panels = plt.subplots(
        2, -(-len(others) // 2), figsize=(13, 6), sharex=True, sharey=True, layout="constrained"
    )
    for panel, name in zip(panels.flat, others, strict=False):
        for agent, colour in AGENTS.items():
            draw(panel, f"agents/{agent}-seed*.jsonl", colour, agent, width=0.8)
        draw(panel, f"agents/{name}-seed*.jsonl", "tab:green", name, width=2)
    for panel in list(panels.flat)[len(others) :]:
        panel.remove()
    finish(figure, "agents.png")


def draw_ablation() -> None:
    """Each control in a panel of its own, with ebu and dqn for comparison."""
    paths = (DATA / "ablation").glob("*-seed0.jsonl")
    controls = sorted(path.name.removesuffix("-seed0.jsonl") for path in paths)
    figure, panels = plt.subplots(
        1, len(controls), figsize=(15, 3.6), sharex=True, sharey=True, layout="constrained"
    )
    for panel, name in zip(panels, controls, strict=True):
        for agent, colour in AGENTS.items():
            draw(panel, f"agents/{agent}-seed*.jsonl", colour, agent, width=0.8)
        draw(panel, f"ablation/{name}-seed*.jsonl", "tab:green", name, width=2)
    finish(figure, "ablation.png")


if __name__ == "__main__":
    draw_first_million()
    draw_agents()
    draw_ablation()
