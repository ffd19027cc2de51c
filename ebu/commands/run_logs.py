"""Open a run's logs: new ones with its settings, or those of a run to be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebu.commands.presets import TrainConfig
from ebu.errors import UsageError
from ebu.run.checkpoint import Checkpoint
from ebu.run.directory import CHECKPOINTS, EVALUATIONS, METRICS
from ebu.run.files import is_there, writing
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
    _refuse_lost_checkpoints(run_dir)
    # Tells a run that was killed before its first checkpoint from one whose checkpoints are gone.
    with writing(run_dir / CHECKPOINTS):
        (run_dir / CHECKPOINTS).mkdir(exist_ok=True)
    cut_logs(run_dir, {})
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


def _refuse_lost_checkpoints(run_dir: Path) -> None:
    """Raise `UsageError` where a run has results and no checkpoint: nothing is deleted."""
    results = [name for name in ("best", "evaluations") if is_there(run_dir / name)]
    logs = [METRICS, EVALUATIONS] if not (run_dir / CHECKPOINTS).is_dir() else [EVALUATIONS]
    results += [name for name in logs if last_frames(run_dir / name) is not None]
    if results:
        raise UsageError(
            f"{run_dir} has {' and '.join(results)}, but its checkpoints are gone: put "
            f"{CHECKPOINTS}/ back to resume it, or choose another --run-dir to start again; "
            "nothing has been deleted"
        )


def _is_complete(run_dir: Path, checkpoint: Checkpoint, config: TrainConfig) -> bool:
    """Whether all frames are played, and the logs hold what a run's end adds to them."""
    frames = checkpoint.state["frames"]
    logs = [METRICS] if config.loop.eval_every_frames == 0 else [METRICS, EVALUATIONS]
    written = all(last_frames(run_dir / log) == frames for log in logs)
    return bool(frames >= config.frames and written)
