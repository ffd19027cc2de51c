"""Draw the training curves of the runs in data/ (their metrics.jsonl, as committed).

python docs/results/plot.py    writes docs/pictures/curves.png
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
GAMES, AGENTS = ("breakout", "pong"), {"ebu": "tab:blue", "dqn": "tab:orange"}


def curve(path: Path) -> tuple[list[int], list[float]]:
    """Frames, and the mean raw return of the last 100 training games at them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    points = [
        (line["frames"], line["train/return_last_100_games"])
        for line in lines
        if "train/return_last_100_games" in line
    ]
    frames, returns = zip(*points, strict=True)
    return list(frames), list(returns)


def main() -> None:
    figure, panels = plt.subplots(1, len(GAMES), figsize=(10, 4), constrained_layout=True)
    for panel, game in zip(panels, GAMES, strict=True):
        for agent, colour in AGENTS.items():
            runs = sorted((HERE / "data").glob(f"{game}-{agent}-seed*.jsonl"))
            for seed, path in enumerate(runs):
                frames, returns = curve(path)
                label = f"{agent}, one line a seed" if seed == 0 and len(runs) > 1 else agent
                panel.plot(
                    [frame / 1e6 for frame in frames],
                    returns,
                    color=colour,
                    label=label if seed == 0 else None,
                )
        panel.set_title(game)
        panel.set_xlabel("million frames")
        panel.set_ylabel("mean raw return of the last 100 training games")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(HERE.parent / "pictures" / "curves.png", dpi=120)


if __name__ == "__main__":
    main()
