"""What an update dispatches: operations, copies, and the bytes that they read and write.

    python -m benchmarks.operations --json operations.json

Counted on the CPU, where they are the same on every machine. On a GPU nearly every operation is a
kernel of its own, and a group of updates is one launch. Views cost nothing and are not counted.

| figure | of one update of many, draws and target passes included |
| --- | --- |
| operations | calls that compute or move something |
| copies | tensors that such calls only move or cast |
| megabytes | read and written, as if nothing stayed in a cache |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agents import build_agent, build_learner
from benchmarks.measurement import BenchmarkSettings, markdown, run_benchmark
from ebu.commands.presets import DEFAULT, for_agent
from ebu.replay import EpisodicReplay
from ebu.run.cli import run_command
from ebu.run.machine import prepare_torch

AGENTS, PRECISIONS = ("ebu", "dqn"), ("float32", "bfloat16")
UPDATES, STREAMS, ACTIONS, SIDE = 16, 4, 6, 84
SEGMENT_STEPS = 50
CPU = torch.device("cpu")
MARKS = ("detach", "_record_function")
"""Operations that do nothing to numbers."""


@dataclass(frozen=True)
class Settings(BenchmarkSettings):
    """What is counted."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.copies = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func.__name__.startswith(MARKS):
            return result
        self.operations += 1
        touched = tree_leaves((args, kwargs, result))
        tensors = {id(each): each for each in touched if isinstance(each, Tensor)}.values()
        self.bytes += sum(each.nbytes for each in tensors)
        if "copy" in func.__name__ or "clone" in func.__name__:
            self.copies += max(1, len(tensors) // 2)
        return result


def noise(seed: int) -> EpisodicReplay:
    """A replay memory of frames of noise, in segments of one length."""
    rng = np.random.default_rng(seed)
    replay = EpisodicReplay(
        capacity=8_000,
        num_streams=STREAMS,
        frame_shape=(SIDE, SIDE),
        frame_dtype=torch.uint8,
        stack=4,
        device=CPU,
    )
    never, ones = np.zeros(STREAMS, bool), np.ones(STREAMS, np.float32)
    for step in range(5 * SEGMENT_STEPS + 1):
        replay.append(
            rng.integers(256, size=(STREAMS, SIDE, SIDE), dtype=np.uint8),
            rng.integers(ACTIONS, size=STREAMS),
            rng.normal(size=STREAMS).astype(np.float32),
            terminated=never | (step > 0 and step % SEGMENT_STEPS == 0),
            truncated=never,
            started=never | (step == 0),
            probabilities=ones,
        )
    return replay


def count(name: str, precision: str, replay: EpisodicReplay, seed: int = 0) -> dict[str, float]:
    """The figures of one update of an agent with the default preset's network."""
    settings = for_agent(DEFAULT, name)
    learner = build_learner(
        settings.method,
        settings.learner,
        stack=replay.stack,
        frame_shape=replay.frame_shape,
        num_actions=ACTIONS,
        device=CPU,
        precision=precision,
        rng=np.random.default_rng(seed),
    )
    agent = build_agent(settings.method, learner, np.random.default_rng(seed))
    agent.learn(replay, 1)
    with Operations() as counted:
        agent.learn(replay, UPDATES)
    return {
        "operations": counted.operations / UPDATES,
        "copies": counted.copies / UPDATES,
        "megabytes": counted.bytes / UPDATES / 1e6,
    }


def measure(settings: Settings) -> dict[str, Any]:
    """The figures of every agent and precision."""
    prepare_torch(CPU, threads=1)
    replay = noise(settings.seed)
    return {
        "updates": [
            {"agent": name, "precision": precision} | count(name, precision, replay, settings.seed)
            for name, precision in product(AGENTS, PRECISIONS)
        ]
    }


def table(figures: Mapping[str, Any]) -> str:
    """The counts as a Markdown table."""
    columns = ("operations", "copies", "megabytes")
    rows = [
        (each["agent"], each["precision"], *(f"{each[column]:.1f}" for column in columns))
        for each in figures["updates"]
    ]
    return markdown(("agent", "precision", *columns), rows)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
