"""Open a run's logs: new ones with its settings, or those of a run to be resumed."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebu.commands.presets import TrainConfig
from ebu.run.checkpoint import Checkpoint
from ebu.run.directory import EVALUATIONS, METRICS
from ebu.run.logs import Monitor, cut_logs, last_frames
from ebu.run.progress import say

HYPERPARAMETERS = ("agent", "game", "learning_rate", "network", "seed")
MORE_HYPERPARAMETERS = (
    "batch_size",
    "beta",
    "gamma",
    "num_envs",
    "preset",
    "protocol",
    "replay_capacity",
    "target_sync_updates",
    "updates_per_step",
)
"""What TensorBoard compares runs by; those of `MORE_HYPERPARAMETERS` when they are ticked."""


def open_logs(
    run_dir: Path,
    checkpoint: Checkpoint | None,
    config: TrainConfig,
    description: Mapping[str, Any],
    protocol: Mapping[str, Any],
) -> Monitor:
    """Cut the logs back to the checkpoint and open them; without a checkpoint, start new ones.

    What was written because the run ended stays until the run is trained further.
    """
    if checkpoint is not None:
        warnings = checkpoint.warnings
        if not _is_complete(run_dir, checkpoint, config):
            warnings = warnings + cut_logs(run_dir, checkpoint.logs)
        for line in warnings:
            say(f"warning: {line}")
        return Monitor(run_dir, resumed_at=checkpoint.state["frames"])
    cut_logs(run_dir, {})
    shutil.rmtree(run_dir / "best", ignore_errors=True)
    monitor = Monitor(run_dir)
    settings = description["settings"]
    for title, table in (("configuration", settings), ("protocol", protocol)):
        rows = "".join(f"\n| {name} | {value} |" for name, value in table.items())
        monitor.text(title, f"| setting | value |\n| --- | --- |{rows}")
    monitor.layout()
    # Several learners have a β each.
    more = {name: settings.get(name) for name in MORE_HYPERPARAMETERS}
    if settings.get("learners", 1) > 1:
        more["beta"] = None
    # A seed is a name: it has no mean and no decimals.
    first = {name: settings[name] for name in HYPERPARAMETERS} | {"seed": str(settings["seed"])}
    monitor.hyperparameters(first, more)
    return monitor


def _is_complete(run_dir: Path, checkpoint: Checkpoint, config: TrainConfig) -> bool:
    """Whether all frames are played, and the logs hold what a run's end adds to them."""
    frames = checkpoint.state["frames"]
    logs = [METRICS] if config.loop.eval_every_frames == 0 else [METRICS, EVALUATIONS]
    written = all(last_frames(run_dir / log) == frames for log in logs)
    return bool(frames >= config.frames and written)
