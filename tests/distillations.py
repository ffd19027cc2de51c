"""Distillations as small as they get: their teachers, their settings, and what they leave."""

import json
import shutil
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.distillation.settings import DistillConfig
from ebu.commands.distilling.run import Outcome, run
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.run.cli import parse
from tests.checkpoints import reseal

GREY = "tests.envs.tiny:TinyGrey-v0"
NUMBERS = "tests.envs.tiny:TinyNumbers-v0"
FLAGS = [
    *("--students", "2-2-2/4", "--seeds", "2", "--games", "2", "--no-export"),
    *("--states", "90", "--rounds", "2", "--num-envs", "3"),
    *("--updates", "4", "--batch-size", "8", "--log-every-updates", "2"),
    *("--threads", "1", "--device", "cpu", "--precision", "float32", "--trust-env"),
]


def train(run_dir: Path, flags: str) -> Path:
    """A few steps of training."""
    args = "--num-envs 2 --replay-capacity 300 --learning-starts 50 --eval-every-frames 0"
    config = parse_arguments(f"{args} --threads 1 --device cpu --run-dir {run_dir} {flags}".split())
    trainer = build_trainer(config)
    try:
        assert trainer.run(config.frames)
    finally:
        trainer.close()
    return run_dir


def train_teacher(directory: Path) -> Path:
    """A run on pictures."""
    return train(directory, f"--game {GREY} --network 3-3-3/6 --frames 200")


def copy_as_other_run(teacher: Path, directory: Path, **changes: dict[str, Any]) -> Path:
    """A copy of a run whose config.json and checkpoints say so of its settings, or environment."""
    shutil.copytree(teacher, directory)
    config = json.loads((directory / "config.json").read_text())
    for part, values in changes.items():
        config[part] |= values
    (directory / "config.json").write_text(json.dumps(config))
    for checkpoint in (directory / "checkpoints").iterdir():
        reseal(checkpoint, run=None)
    return directory


def config_of(teacher: Path, out: Path, *flags: object) -> DistillConfig:
    """The smallest settings, and these."""
    args = [str(teacher), "--out", str(out), *FLAGS, *map(str, flags)]
    return parse(DistillConfig, args, prog="distill.py", description="")


def distilled(teacher: Path, out: Path, *flags: object, **options: Any) -> Outcome:
    """Distil one game with the smallest settings, and these."""
    (outcome,) = run(config_of(teacher, out, *flags), **options)
    return outcome


def contents(out: Path) -> dict[str, Any]:
    """Everything made, by path: records without wall times, weights, states, what was logged."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".json" and path.name in ("result.json", "report.json", "teacher.json"):
            found[name] = without_seconds(json.loads(path.read_text()))
        elif path.name in ("state.safetensors", "frames.zst") and "training" not in path.parts:
            found[name] = path.read_bytes()
        elif path.name == "config.json" and path.parent != out:
            found[name] = json.loads(path.read_text())
        elif path.parent.parent.name == "students" and path.name == "checkpoints":
            found[f"{name} logs"] = scalars(path.parent)
    return found


def without_seconds(value: Any) -> Any:
    """A record without what depends on the clock."""
    if isinstance(value, dict):
        clocked = ("seconds", "latency", "p50_us", "p99_us")
        return {key: without_seconds(x) for key, x in value.items() if key not in clocked}
    return [without_seconds(x) for x in value] if isinstance(value, list) else value


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a directory, by tag."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
