"""Whether CUDA graphs learn what the same operations learn when each is launched on its own.

    python -m benchmarks.parity --updates 1000 --json parity.json

Agents with the same weights and the same draws learn from one memory of frames that were played:
`graphed`, as training does on a GPU; `eager`, without graphs; and `again`, without graphs too,
which shows what kernels that add in any order leave to chance. Two comparisons with `eager`:

- in step: before 1, 2, 4, 8 or 16 updates, as many as one graph holds, `eager` takes over the state
  of `graphed`, so that each group is compared by itself;
- apart: nothing is copied. Differences in the last bit grow with every update, so only their
  absence says something: with --deterministic, and on the CPU, all bits must be equal.

The results file holds `tolerance` and `parity`, a list of one entry for each `agent` and
`precision`. Differences are norms over all weights, relative to that of the weights: `in_step`, the
largest that any group of updates makes, and whether it is `within` the tolerance of the precision;
`apart`, of `graphed` and of `again` after 1, 10, ... and all updates; `bitwise`, whether all those
of `graphed` are 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from agents import Agent, Learner, build_agent
from agents.agent import MEASURED_UPDATES
from benchmarks.measurement import run_benchmark, say
from benchmarks.runs import PlaySettings, network_arguments, random_play
from ebu.commands.presets import DEFAULT, for_agent
from ebu.errors import UsageError
from ebu.replay import EpisodicReplay
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.machine import arithmetic
from ebu.run.settings import Positive
from ebu.training import Trainer

# The first update moves the weights by 2e-3 of their norm, later ones by a tenth of that. Adam's
# first steps hardly depend on how small a gradient is, so what is rounded there comes out enlarged:
# noise of a millionth of the largest gradient of a tensor leads 2e-5 apart, and in 16 updates no
# further; noise of a thousandth, in bfloat16, 8e-4 in 16.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-3}


@dataclass(frozen=True)
class Settings(PlaySettings):
    """What is compared."""

    agents: tuple[Literal["ebu", "dqn"], ...] = ("ebu", "dqn")
    """Our agents."""
    precisions: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32",)
    """Arithmetic of the networks."""
    updates: Positive = 1_000
    """Gradient steps of each."""

    def checked(self) -> Self:
        """With the game's id."""
        if not (self.agents and self.precisions):
            raise UsageError("nothing to compare: give --agents and --precisions")
        return super().checked()


def agents_of(name: str, precision: str, seed: int, trainer: Trainer) -> dict[str, Agent]:
    """The agents that are compared, alike but for their graphs."""
    agents: dict[str, Agent] = {}
    for way in ("eager", "again", "graphed"):
        rng = np.random.default_rng(seed)
        arguments = network_arguments(trainer)
        learner = Learner(DEFAULT.learner, **arguments, precision=precision, rng=rng)
        config = replace(for_agent(DEFAULT, name).method, cuda_graphs=way == "graphed")
        agents[way] = build_agent(config, learner, np.random.default_rng(seed))
    return agents


def in_step(agents: Mapping[str, Agent], replay: EpisodicReplay, updates: int) -> float:
    """The largest difference that any group of updates makes, each from the same weights."""
    eager, graphed = agents["eager"], agents["graphed"]
    largest = torch.zeros((), dtype=torch.float64, device=replay.device)
    for count in group_sizes(updates):
        # Not the other way round: a graph keeps the places of its tensors.
        eager.load_state_dict(graphed.state_dict())
        eager.learn(replay, count)
        graphed.learn(replay, count)
        largest = torch.maximum(largest, difference(eager, graphed))
    return largest.item()


def group_sizes(updates: int) -> Iterator[int]:
    """1, 2, 4, 8, 16, 1, 2, ...: `updates` in all."""
    for size in cycle(1 << power for power in range(MEASURED_UPDATES.bit_length())):
        if updates <= 0:
            return
        yield min(size, updates)
        updates -= size


def apart(
    agents: dict[str, Agent], replay: EpisodicReplay, updates: int
) -> dict[str, dict[str, float]]:
    """The differences from `eager` after 1, 10, ... and all updates."""
    differences: dict[str, dict[str, float]] = {"graphed": {}, "again": {}}
    done = 0
    for number in milestones(updates):
        for agent in agents.values():
            agent.learn(replay, number - done)
        done = number
        for way, values in differences.items():
            values[str(number)] = difference(agents["eager"], agents[way]).item()
    return differences


def milestones(updates: int) -> list[int]:
    """1, 10, 100, ... and the last."""
    powers = [10**power for power in range(len(str(updates))) if 10**power < updates]
    return [*powers, updates]


@torch.no_grad()
def difference(agent: Agent, other: Agent) -> Tensor:
    """|w - w'| / |w| over all weights of the networks that are trained: () float64."""
    networks = (each.learner.online.parameters() for each in (agent, other))
    pairs = [(one.double(), two.double()) for one, two in zip(*networks, strict=True)]
    apart = torch.stack([(one - two).square().sum() for one, two in pairs]).sum()
    return (apart / torch.stack([one.square().sum() for one, _ in pairs]).sum()).sqrt()


def measure(settings: Settings) -> dict[str, Any]:
    """The figures of every agent and precision."""
    figures = []
    with random_play(settings) as trainer:
        for precision, name in product(settings.precisions, settings.agents):
            say(f"{name}, {precision}: {settings.updates} updates in step, as many apart")
            agents, others = (agents_of(name, precision, settings.seed, trainer) for _ in range(2))
            with arithmetic(trainer.replay.device, precision):
                together = in_step(agents, trainer.replay, settings.updates)
                alone = apart(others, trainer.replay, settings.updates)
            figures.append(
                {
                    "agent": name,
                    "precision": precision,
                    "in_step": together,
                    "within": together <= TOLERANCE[precision],
                    "apart": alone,
                    "bitwise": max(together, *alone["graphed"].values()) == 0,
                }
            )
    return {"tolerance": TOLERANCE, "parity": figures}


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    parity = figures["parity"]
    rows = [
        (
            each["agent"],
            each["precision"],
            "yes" if each["bitwise"] else "no",
            f"{each['in_step']:.1e}",
            f"{TOLERANCE[each['precision']]:.0e}",
            *(f"{value:.1e}" for value in each["apart"]["graphed"].values()),
            f"{[*each['apart']['again'].values()][-1]:.1e}",
        )
        for each in parity
    ]
    counts = [f"{int(count):,}" for count in parity[0]["apart"]["graphed"]]
    header = ("agent", "precision", "bit for bit", "in step", "tolerance")
    after = (f"apart, after {count}" for count in counts)
    return markdown.table((*header, *after, f"eager again, after {counts[-1]}"), rows)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
