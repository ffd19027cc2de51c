"""Relative lengths of paths: those of the learners, and those of the best policy there is."""

from collections.abc import Sequence

import numpy as np

from envs.maze import GOAL, MAX_STEPS, MOVES, START, ManyMazes, Maze
from studies.maze.learners import METHODS, MazeLearners
from studies.maze.settings import Setting, seed_of

GAMES = 10


def evaluate(
    learners: MazeLearners, mazes: Sequence[Maze], setting: Setting
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Relative lengths of each method in each maze: greedy, and with the learners' present ε.

    Each is the mean of 10 games, over the shortest path; a game that does not reach the goal counts
    the 1,000 steps after which it is truncated.
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
    random = np.stack([rng.random((MAX_STEPS, len(epsilons), 2)) for rng in rngs])
    steps = np.zeros((len(METHODS) * count, len(epsilons)), dtype=np.int64)
    playing = np.ones(steps.shape, dtype=bool)
    images = env.reset()
    for step in range(MAX_STEPS):
        explores, action = np.moveaxis(np.tile(random[:, step], (len(METHODS), 1, 1)), -1, 0)
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
    greedy_lengths, exploring_lengths = (
        dict(zip(METHODS, relative[:, :, kind].tolist(), strict=True)) for kind in range(2)
    )
    return greedy_lengths, exploring_lengths


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
