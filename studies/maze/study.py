"""The paper's maze study: how long agents wander after 100,000 steps, method by method.

For each density of walls, with deterministic and with stochastic moves, every method learns the
same mazes, one network for each maze, all of a setting side by side in one batched network. A
finished setting is one file; the same command run again does only what is missing.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ebu.errors import EbuError, UsageError
from ebu.run.cli import run_command
from ebu.run.files import write_whole
from ebu.run.reading import read_json
from envs.maze import MOVES, ManyMazes, Maze, load_digits
from studies.maze.evaluation import best_lengths, evaluate
from studies.maze.learners import METHODS, MazeLearners, MazeLearningConfig
from studies.maze.settings import Setting, seed_of

EVALUATE_EVERY = 10_000


def made_with(setting: Setting) -> dict[str, Any]:
    """Everything a result depends on, in JSON values."""
    settings = {
        "setting": asdict(setting),
        "learning": asdict(MazeLearningConfig()),
        "methods": {name: method._asdict() for name, method in METHODS.items()},
    }
    return dict(json.loads(json.dumps(settings)))


def read_result(out: Path, setting: Setting) -> dict[str, Any] | None:
    """A finished setting's result; None if it is not finished.

    Raises `UsageError` if the file was made with other settings or is damaged.
    """
    path = out / f"{setting.name}.json"
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = read_json(path)
        same = result["made_with"] == made_with(setting)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error!r}): remove it") from None
    if not same:
        raise UsageError(f"{path} was made with other settings: choose another --out")
    return result


def run_settings(settings: Sequence[Setting], out: Path, processes: int) -> None:
    """Measure each setting in a process of its own, `processes` at a time.

    Raises `EbuError` if one of them fails; all end when this process does.
    """
    waiting, running = list(settings), list[BaseProcess]()
    while waiting or running:
        while waiting and len(running) < processes:
            process = get_context("spawn").Process(
                target=_run_alone, args=(waiting.pop(0), out), daemon=True
            )
            # Ctrl-C reaches every process; this one ends then, and the others with it.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.start()
            signal.signal(signal.SIGINT, handler)
            running.append(process)
        connection.wait([process.sentinel for process in running])
        for ended in [each for each in running if not each.is_alive()]:
            if ended.exitcode != 0:
                raise EbuError(
                    f"a setting ended with exit code {ended.exitcode}: see above, then run the "
                    "same command again to do what is missing"
                )
            running.remove(ended)


def _run_alone(setting: Setting, out: Path) -> None:
    torch.set_num_threads(1)
    run_command(lambda: run_setting(setting, out))


def run_setting(setting: Setting, out: Path) -> None:
    """Measure a setting and write its result. Raises `EbuError` if it cannot be written."""
    content = json.dumps(measure(setting)).encode()
    write_whole(out / f"{setting.name}.json", content)


def measure(setting: Setting) -> dict[str, Any]:
    """Train one learner for each method and maze, side by side, and evaluate them as they go.

    Returns JSON values:

    | key | meaning |
    | --- | --- |
    | made_with | all settings |
    | shortest_paths | moves from start to goal, for each maze |
    | best_greedy | expected relative length of the best policy, for each maze |
    | evaluations | a list: agent_steps, epsilon, best_exploring (as best_greedy, under that ε), and
      the relative lengths of each method, for each maze: `greedy`, and `exploring` with that ε |
    | wall_seconds, cpu_seconds, versions | of this process |
    """
    wall, cpu = time.perf_counter(), time.process_time()
    mazes = [Maze.draw(setting.density / 100, index) for index in range(setting.mazes)]
    # All methods draw the same weights, images, slips and explorations, so these cause no
    # difference between them.
    learners = MazeLearners(
        MazeLearningConfig(),
        [method for method in METHODS.values() for _ in mazes],
        [seed_of(setting, index, "learner") for index in range(len(mazes))] * len(METHODS),
        images=load_digits().images.reshape(-1, 64),
        num_actions=len(MOVES),
        max_steps=setting.agent_steps,
    )
    env = ManyMazes(
        mazes * len(METHODS),
        [seed_of(setting, index, "maze") for index in range(len(mazes))] * len(METHODS),
        slip_probability=setting.slip_probability,
    )
    evaluations: list[dict[str, Any]] = []
    images = env.reset()
    for step in range(1, setting.agent_steps + 1):
        actions = learners.act(images)
        played = env.step(actions)
        learners.remember(images, actions, played)
        images = played.images
        if step % EVALUATE_EVERY == 0 or step == setting.agent_steps:
            greedy, exploring = evaluate(learners, mazes, setting)
            evaluations.append(
                {
                    "agent_steps": step,
                    "epsilon": learners.epsilon,
                    "best_exploring": best_lengths(mazes, setting, learners.epsilon),
                    "greedy": greedy,
                    "exploring": exploring,
                }
            )
            seconds = time.perf_counter() - wall
            print(f"{setting.name}: {step:,} steps, {seconds:.0f} s", file=sys.stderr, flush=True)
    return {
        "made_with": made_with(setting),
        "shortest_paths": [maze.shortest_path for maze in mazes],
        "best_greedy": best_lengths(mazes, setting, 0.0),
        "evaluations": evaluations,
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
    }
