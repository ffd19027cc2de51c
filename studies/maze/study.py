"""The paper's maze study: how long agents wander after 100,000 steps, method by method.

    python studies/maze/study.py --out docs/results/maze
    python studies/maze/study.py --out runs/maze-200k --full

For each density of walls, with deterministic and with stochastic moves, every method learns the
same mazes, one network for each maze, all of a setting side by side in one batched network. A
setting is written to disk when it is finished; the same command run again does only what is missing
and then makes the tables and the picture from what lies there.
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ebu.errors import EbuError, UsageError  # noqa: E402
from ebu.run.cli import parse, run_command  # noqa: E402
from ebu.run.files import replace_whole  # noqa: E402
from envs.maze import GOAL, MAX_STEPS, MOVES, START, ManyMazes, Maze, load_digits  # noqa: E402
from studies.maze.learners import METHODS, MazeLearners, MazeLearningConfig  # noqa: E402
from studies.maze.report import draw, tables  # noqa: E402

SLIP_PROBABILITY = 0.2
EVALUATE_EVERY = 10_000
GAMES = 10


@dataclass(frozen=True)
class StudyConfig:
    """What is studied."""

    out: Path
    """Where results, tables and picture are written; settings finished there are not done again."""
    full: bool = False
    """200,000 agent steps of every agent instead of 100,000."""
    steps: int | None = None
    """Another number of agent steps."""
    mazes: int = 30
    """Mazes for each density."""
    densities: tuple[int, ...] = (20, 30, 40, 50)
    """Densities of walls, in per cent."""
    seed: int = 0
    """Seed of everything random but the mazes."""
    processes: int = 2
    """Settings that are worked on at a time, each in a process of one thread."""


@dataclass(frozen=True)
class Setting:
    """One density with one kind of moves, and how it is studied."""

    density: int
    stochastic: bool
    agent_steps: int
    mazes: int
    seed: int

    @property
    def name(self) -> str:
        """As in file names: `density-20-stochastic`."""
        return f"density-{self.density}-{self.moves}"

    @property
    def moves(self) -> str:
        """The kind of moves."""
        return "stochastic" if self.stochastic else "deterministic"

    @property
    def slip_probability(self) -> float:
        """Chance that a move turns to a perpendicular one."""
        return SLIP_PROBABILITY if self.stochastic else 0.0


def main(args: Sequence[str] | None = None) -> None:
    """Do what is missing, then write `tables.md` and `relative_length.png`."""
    config = parse(
        StudyConfig,
        sys.argv[1:] if args is None else args,
        prog="studies/maze/study.py",
        description="The paper's maze study: relative lengths of the paths of six methods.",
    )
    settings = settings_of(config)
    with _writing_to(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    missing = [setting for setting in settings if read_result(config.out, setting) is None]
    work_off(missing, config.out, config.processes)
    results = [result for setting in settings if (result := read_result(config.out, setting))]
    text = tables(results)
    with _writing_to(config.out):
        (config.out / "tables.md").write_text(text)
        draw(results, config.out / "relative_length.png")
    print(text)


@contextlib.contextmanager
def _writing_to(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EbuError(f"cannot write to --out {out}: {error}") from None


def settings_of(config: StudyConfig) -> list[Setting]:
    """All settings of a study. Raises `UsageError` for what cannot be studied."""
    if config.full and config.steps is not None:
        raise UsageError("--full is --steps 200000: leave one of them out")
    steps = config.steps if config.steps is not None else 200_000 if config.full else 100_000
    for flag, value, least in (
        ("--steps", steps, 1),
        ("--mazes", config.mazes, 2),
        ("--processes", config.processes, 1),
        ("--seed", config.seed, 0),
        ("number of --densities", len(config.densities), 1),
    ):
        if value < least:
            raise UsageError(f"{flag} must be at least {least}, but is {value}")
    for density in config.densities:
        if not 0 <= density <= 60:
            raise UsageError(f"--densities must lie between 0 and 60 per cent, not {density}")
    if len(set(config.densities)) < len(config.densities):
        raise UsageError("--densities names a density twice")
    try:
        load_digits()
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(str(error)) from None
    return [
        Setting(density, stochastic, steps, config.mazes, config.seed)
        for density in config.densities
        for stochastic in (False, True)
    ]


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

    Raises `UsageError` if what lies there was made with other settings or is damaged.
    """
    path = out / f"{setting.name}.json"
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        same = result["made_with"] == made_with(setting)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error!r}): remove it") from None
    if not same:
        raise UsageError(f"{path} was made with other settings: choose another --out")
    return result


def work_off(settings: Sequence[Setting], out: Path, processes: int) -> None:
    """Study each setting in a process of its own, so many at a time.

    Raises `EbuError` if one of them fails; all end when this process does.
    """
    waiting, running = list(settings), list[BaseProcess]()
    while waiting or running:
        while waiting and len(running) < processes:
            process = get_context("spawn").Process(
                target=_study_alone, args=(waiting.pop(0), out), daemon=True
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


def _study_alone(setting: Setting, out: Path) -> None:
    torch.set_num_threads(1)
    run_command(lambda: study_setting(setting, out))


def study_setting(setting: Setting, out: Path) -> None:
    """Train, evaluate, and write the result to disk, whole or not at all.

    Raises `EbuError` if it cannot be written.
    """
    result = train_setting(setting, lambda line: print(line, file=sys.stderr, flush=True))
    with _writing_to(out):
        replace_whole(out / f"{setting.name}.json", json.dumps(result).encode())


def train_setting(setting: Setting, say: Callable[[str], None]) -> dict[str, Any]:
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
    # Weights, images, slips and explorations are drawn alike for all methods, so that nothing of
    # their differences is due to that.
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
        learners.remember(
            images,
            actions,
            played.rewards,
            played.terminated,
            played.truncated,
            played.next_images,
        )
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
            say(f"{setting.name}: {step:,} steps, {time.perf_counter() - wall:.0f} s")
    return {
        "made_with": made_with(setting),
        "shortest_paths": [maze.shortest_path for maze in mazes],
        "best_greedy": best_lengths(mazes, setting, 0.0),
        "evaluations": evaluations,
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
    }


def seed_of(setting: Setting, maze: int, part: str) -> int:
    """The seed of one part of what happens in one maze, the same for both kinds of moves."""
    words = [setting.seed, setting.density, maze, *part.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def evaluate(
    learners: MazeLearners, mazes: Sequence[Maze], setting: Setting
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Relative lengths of each method in each maze, greedy and with the ε of this moment.

    Each is the mean of 10 games, over the shortest path; a game that does not reach the goal counts
    the 1,000 steps after which it is cut.
    """
    count = len(mazes)
    epsilons = np.repeat([0.0, learners.epsilon], GAMES)
    seeds = [
        seed_of(setting, maze, f"evaluation game {game}")
        for maze in range(count)
        for game in range(len(epsilons))
    ]
    env = ManyMazes(
        [maze for maze in mazes for _ in epsilons] * len(METHODS),
        seeds * len(METHODS),
        slip_probability=setting.slip_probability,
    )
    # (mazes, steps, games, 2): whether to explore, and with which action.
    rngs = [np.random.default_rng(seed_of(setting, maze, "evaluation")) for maze in range(count)]
    dice = np.stack([rng.random((MAX_STEPS, len(epsilons), 2)) for rng in rngs])
    steps = np.zeros((len(METHODS) * count, len(epsilons)), dtype=np.int64)
    playing = np.ones(steps.shape, dtype=bool)
    images = env.reset()
    for step in range(MAX_STEPS):
        explores, action = np.moveaxis(np.tile(dice[:, step], (len(METHODS), 1, 1)), -1, 0)
        greedy = learners.greedy(images.reshape(*steps.shape, 2))
        actions = np.where(explores < epsilons, (action * len(MOVES)).astype(int), greedy)
        played = env.step(actions.reshape(-1))
        images = played.images
        steps += playing
        playing &= ~played.terminated.reshape(playing.shape)
        if not playing.any():
            break
    shortest = np.array([maze.shortest_path for maze in mazes])[:, None]
    relative = (steps.reshape(len(METHODS), count, 2, GAMES).mean(axis=3) / shortest).round(4)
    as_greedy, as_exploring = (
        dict(zip(METHODS, relative[:, :, kind].tolist(), strict=True)) for kind in range(2)
    )
    return as_greedy, as_exploring


def best_lengths(mazes: Sequence[Maze], setting: Setting, epsilon: float) -> list[float]:
    """Expected relative length, in each maze, of the best policy under ε-greedy play."""
    return [
        round(best_length(maze, setting.slip_probability, epsilon) / maze.shortest_path, 4)
        for maze in mazes
    ]


def best_length(maze: Maze, slip_probability: float, epsilon: float) -> float:
    """Expected steps to the goal of the best policy whose actions are random with probability ε."""
    reached = np.zeros(len(maze.next_cells), dtype=bool)
    reached[START] = True
    for _ in range(len(reached)):
        reached[maze.next_cells[reached]] = True
    reached[GOAL] = False
    cells = np.flatnonzero(reached)
    # (cells, 4, 100): where each action leads, and how probably.
    straight = np.eye(len(reached))[maze.next_cells[cells]]
    turned = (np.roll(straight, 1, axis=1) + np.roll(straight, -1, axis=1)) / 2
    leads = (1 - slip_probability) * straight + slip_probability * turned
    leads = (1 - epsilon) * leads + epsilon * leads.mean(axis=1, keepdims=True)
    # Policy iteration, from random play.
    followed = leads.mean(axis=1)
    best = np.inf
    while True:
        steps = np.zeros(len(reached))
        steps[cells] = np.linalg.solve(np.eye(len(cells)) - followed[:, cells], np.ones(len(cells)))
        if steps[START] > best - 1e-9:
            return best
        best = float(steps[START])
        followed = leads[np.arange(len(cells)), (leads @ steps).argmin(axis=1)]


if __name__ == "__main__":
    run_command(main)
