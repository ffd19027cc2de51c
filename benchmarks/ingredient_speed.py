"""What each ingredient of agents for few frames adds to an update.

    python -m benchmarks.ingredient_speed --precision bfloat16 --json ingredients.json

Updates of `ebu` on a memory of frames that were played, with one setting changed each, in turns.
Milliseconds of processor time of an update, draws and target passes included, and the ratio to the
plain agent's within a round.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from agents import Agent, build_agent, build_learner
from benchmarks.measurement import interleave, medians, run_benchmark
from benchmarks.runs import PlaySettings, network_arguments, random_play
from ebu.commands.presets import DEFAULT, for_agent
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.settings import Positive

INGREDIENTS: dict[str, dict[str, Any]] = {
    "ebu": {},
    "--double": {"double": True},
    "--prioritized": {"prioritized": True},
    "--network dueling": {"network": "dueling"},
    "--quantiles 51": {"quantiles": 51},
    "--shift-pixels 4": {"shift_pixels": 4},
    "--intensity 0.05": {"intensity": 0.05},
    "--target-average 0.005": {"target_average": 0.005},
    "--noisy": {"noisy": True},
    "--weight-decay 0.1": {"weight_decay": 0.1},
    "--average-updates 2000": {"average_updates": 2_000},
    "--network impala": {"network": "impala"},
    "--network impala4": {"network": "impala4"},
}


@dataclass(frozen=True)
class Settings(PlaySettings):
    """What is measured."""

    num_envs: Positive = 8
    """Environments that play."""
    threads: Positive = 1
    """Threads of torch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the networks."""
    updates: Positive = 40
    """Updates in a measurement."""
    rounds: Positive = 5
    """Measurements of each, in turn."""


def measure(settings: Settings) -> dict[str, Any]:
    """All figures."""
    with random_play(settings) as trainer:
        sizes = {**network_arguments(trainer), "precision": settings.precision}
        agents = {name: agent_with(changes, sizes) for name, changes in INGREDIENTS.items()}

        def milliseconds(agent: Agent, number: int) -> float:
            agent.learn(trainer.replay, settings.updates if number == 0 else 1)
            started = time.process_time()
            agent.learn(trainer.replay, settings.updates)
            return 1e3 * (time.process_time() - started) / settings.updates

        tasks = {name: partial(milliseconds, agent) for name, agent in agents.items()}
        rounds = interleave(tasks, settings.rounds)
    ratios = medians({name: each[name] / each["ebu"] for name in each} for each in rounds)
    return {"rounds": rounds, "medians": medians(rounds), "ratios": ratios}


def agent_with(changes: Mapping[str, Any], sizes: Mapping[str, Any]) -> Agent:
    """EBU with some settings changed."""
    row = for_agent(DEFAULT, "ebu")
    of_method = {key: value for key, value in changes.items() if hasattr(row.method, key)}
    of_learner = {key: value for key, value in changes.items() if key not in of_method}
    method = replace(row.method, **of_method)
    rng = np.random.default_rng(0)
    learner = build_learner(method, replace(row.learner, **of_learner), rng=rng, **sizes)
    return build_agent(method, learner, rng)


def table(figures: Mapping[str, Any]) -> str:
    """The medians as a Markdown table."""
    rows = [
        (name, f"{value:.1f}", f"{figures['ratios'][name]:.2f}")
        for name, value in figures["medians"].items()
    ]
    return markdown.table(("with", "ms per update", "over ebu alone"), rows)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
