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

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measurement import BenchmarkSettings, run_benchmark
from benchmarks.noise import agent_for, noise_memory
from ebu.commands.presets import DEFAULT, for_agent
from ebu.replay import EpisodicReplay
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.machine import prepare_torch

AGENTS, PRECISIONS = ("ebu", "dqn"), ("float32", "bfloat16")
UPDATES, ACTIONS = 16, 6
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
        # Rows that are selected are read, not all that there are.
        selects = func is torch.ops.aten.index_select.default
        touched = [result, result, args[2]] if selects else tree_leaves((args, kwargs, result))
        tensors = [each for each in touched if isinstance(each, Tensor)]
        self.bytes += sum(each.nbytes for each in tensors)
        if "copy" in func.__name__ or "clone" in func.__name__:
            self.copies += max(1, len(tensors) // 2)
        return result


def memory() -> EpisodicReplay:
    """A memory of noise with frames of the size of Atari's."""
    return noise_memory(CPU, side=84, actions=ACTIONS)


def count(name: str, precision: str, replay: EpisodicReplay) -> dict[str, float]:
    """The figures of one update of an agent with the default preset's network."""
    settings = for_agent(DEFAULT, name)
    agent = agent_for(
        replay, settings.method, settings.learner, precision=precision, actions=ACTIONS
    )
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
    replay = memory()
    return {
        "updates": [
            {"agent": name, "precision": precision} | count(name, precision, replay)
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
    return markdown.table(("agent", "precision", *columns), rows)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
