"""Run directories as training and scoring leave them, without either."""

import json
from pathlib import Path
from typing import Any

from ebu.commands.studying.plan import PlannedRun
from ebu.run.settings import flat

FRAMES = 10_000
SETTINGS: dict[str, Any] = {
    "preset": "default",
    "frames": FRAMES,
    "protocol": "paper",
    "threads": 1,
    "beta": 0.5,
}


def write_run(
    root: Path,
    game: str,
    agent: str,
    seed: int,
    score: float | None,
    *,
    name: str | None = None,
    played: int = FRAMES,
    evaluated_in_training: float | None = None,
    **settings: Any,
) -> Path:
    """A run that has played `played` frames; without `score` evaluate.py has not scored it."""
    run_dir = root / (name or f"{game}-{agent}-seed{seed}")
    run_dir.mkdir(parents=True)
    own = {**SETTINGS, "game": game, "agent": agent, "seed": seed, **settings}
    (run_dir / "config.json").write_text(json.dumps({"settings": own, "environment": {}}))
    lines = [{"frames": 500, "train/updates": 0.0}]
    lines += [
        {"frames": frames, "train/return_last_100_games": frames / 1_000 + seed}
        for frames in range(1_000, played + 1, 1_000)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated_in_training is not None:
        line = {"frames": played, **summary(evaluated_in_training, games=10)}
        (run_dir / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    if score is not None:
        (run_dir / "evaluation.json").write_text(json.dumps(evaluation(score, played)))
    return run_dir


def as_recorded(run: PlannedRun, **other: Any) -> dict[str, Any]:
    """The settings that train.py would record for a planned run on the CPU."""
    return {**flat(run.config), "device": "cpu", "threads": 1, **other}


def evaluation(score: float, frames: int = FRAMES, **other: Any) -> dict[str, Any]:
    """What evaluate.py writes, as far as it is read here."""
    record = {"policy": "agent", "weights": "final", "trained_frames": frames, "protocol": "paper"}
    record |= {"epsilon": 0.05, "seed": 0, "num_envs": 15, "returns": 30 * [score]}
    return {**record, **summary(score, games=30), **other}


def summary(score: float, games: int) -> dict[str, Any]:
    return {"mean": score, "games": games, "interval_95": [score - 1, score + 1]}
