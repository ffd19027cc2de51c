"""The EBU paper's maze of digit images, registered with Gymnasium as `ebu/Maze-v0`.

Lee, Choi, Chung, *Sample-Efficient Deep Reinforcement Learning via Episodic Backward Update*,
NeurIPS 2019: a 10×10 grid with walls; the agent goes from (0, 0) to (9, 9). An observation is two
images of digits, one for each coordinate, sampled at every step, so that two visits to a cell look
different. The paper uses MNIST (28×28 pixels); here they are the 1,797 digits of 8×8 pixels that
come with scikit-learn.

`MazeEnv` is one maze. `ManyMazes` plays the same games in N mazes at once, as arrays of indices.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from envs.boundary import PIP_INSTALL

SIDE = 10
START, GOAL = 0, SIDE * SIDE - 1
"""Cells are numbered 10 y + x, from the upper left corner to the lower right one."""
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""(x, y) of the actions up, right, down, left; neighbours in this list are perpendicular."""
GOAL_REWARD, WALL_REWARD = 1000.0, -1.0
MAX_STEPS = 1_000
MOST_WALLS = 0.6
"""Highest density of walls: about one in 700 mazes sampled with it can be solved."""
ImageSide = Literal[8, 28]

FREE, WALL, GOAL_COLOUR, AGENT = (240, 240, 240), (60, 60, 70), (80, 170, 90), (220, 90, 50)
CELL_PIXELS, MARGIN = 24, 8


@dataclass(frozen=True, eq=False)
class Maze:
    """One maze and its dynamics as tables over 100 cells and 4 moves.

    | field | shape | meaning |
    | --- | --- | --- |
    | walls | (10, 10) bool | row y, column x |
    | next_cells | (100, 4) int64 | where a move leads; at a wall or the border: the same cell |
    | rewards | (100, 4) float32 | 1000 on reaching the goal, −1 at a wall, else 0 |
    | shortest_path | | moves from the start to the goal |
    """

    walls: np.ndarray
    next_cells: np.ndarray
    rewards: np.ndarray
    shortest_path: int

    @classmethod
    def from_walls(cls, walls: np.ndarray) -> "Maze":
        """Build the maze of these walls, (10, 10) bool; ValueError if it cannot be solved."""
        next_cells = np.empty((SIDE * SIDE, len(MOVES)), dtype=np.int64)
        rewards = np.zeros(next_cells.shape, dtype=np.float32)
        for cell in range(SIDE * SIDE):
            y, x = divmod(cell, SIDE)
            for move, (dx, dy) in enumerate(MOVES):
                to_x, to_y = x + dx, y + dy
                inside = 0 <= to_x < SIDE and 0 <= to_y < SIDE
                blocked = inside and bool(walls[to_y, to_x])
                next_cells[cell, move] = SIDE * to_y + to_x if inside and not blocked else cell
                rewards[cell, move] = WALL_REWARD if blocked else 0.0
        rewards[next_cells == GOAL] = GOAL_REWARD
        shortest_path = None if walls.flat[START] or walls.flat[GOAL] else _distance(next_cells)
        if shortest_path is None:
            raise ValueError("no path leads from the start of this maze to its goal")
        return cls(walls.copy(), next_cells, rewards, shortest_path)

    @classmethod
    def draw(cls, density: float, seed: int) -> "Maze":
        """Sample a solvable maze: each cell but start and goal is a wall with this probability.

        Raises ValueError for a density outside [0, 0.6] or a negative seed.
        """
        if not 0.0 <= density <= MOST_WALLS:
            raise ValueError(f"density is the share of walls, in [0, {MOST_WALLS}]; got {density}")
        if seed < 0:
            raise ValueError(f"maze_seed must not be negative, got {seed}")
        rng = np.random.default_rng(seed)
        while True:
            walls = rng.random((SIDE, SIDE)) < density
            walls.flat[[START, GOAL]] = False
            try:
                return cls.from_walls(walls)
            except ValueError:
                continue


def _distance(next_cells: np.ndarray) -> int | None:
    """Moves from start to goal by breadth-first search; None if there is no path."""
    distances = {START: 0}
    frontier = deque([START])
    while frontier:
        cell = frontier.popleft()
        for neighbour in next_cells[cell].tolist():
            if neighbour not in distances:
                distances[neighbour] = distances[cell] + 1
                frontier.append(neighbour)
    return distances.get(GOAL)


class Digits(NamedTuple):
    """Images of handwritten digits, sorted by digit."""

    images: np.ndarray  # (1797, side, side) float32 in [0, 1]
    first: np.ndarray  # (10,) int64: index of each digit's first image
    number: np.ndarray  # (10,) int64: number of images of each digit

    def pick(self, digits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Indices of images of these digits, picked by numbers in [0, 1) of the same shape."""
        within: np.ndarray = (uniform * self.number[digits]).astype(np.int64)
        picked: np.ndarray = self.first[digits] + within
        return picked


@cache
def load_digits(side: ImageSide = 8) -> Digits:
    """Load scikit-learn's digits, 8×8 or enlarged to 28×28 by bilinear interpolation.

    Raises ValueError for another side, and gymnasium.error.DependencyNotInstalled, which names the
    command that installs it, without scikit-learn.
    """
    if side not in (8, 28):
        raise ValueError(f"image_side must be 8 or 28, got {side}")
    try:
        from sklearn import datasets
    except ImportError:
        raise gymnasium.error.DependencyNotInstalled(
            "the digit images of the maze come with scikit-learn, in the extra 'maze': "
            f"{PIP_INSTALL} scikit-learn"
        ) from None
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) / 16.0).astype(np.float32)
    if side != 8:
        enlarged = [
            Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            for image in images
        ]
        images = np.stack([np.asarray(image) for image in enlarged]).clip(0.0, 1.0)
    order = np.argsort(labels, kind="stable")
    number = np.bincount(labels, minlength=SIDE)
    return Digits(images[order], np.cumsum(number) - number, number)


class MazeEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One maze: the same walls in every game, newly sampled digit images at every step.

    | argument | meaning |
    | --- | --- |
    | density | share of walls, in [0, 0.6]; the paper has 0.2 to 0.5 |
    | maze_seed | selects the maze; `reset(seed=…)` does not change it |
    | slip_probability | chance that a move becomes a perpendicular one; 0.2 in the paper |
    | image_side | 8, or 28 as in the paper |
    | render_mode | `ansi` for text, `rgb_array` for a picture |

    An observation is a float32 vector in [0, 1]: the pixels of the digit of x, then of the digit of
    y, row by row (`observation.reshape(2, image_side, image_side)`). Actions: 0 up, 1 right,
    2 down, 3 left. The reward is 1000 on reaching the goal, which ends the game, −1 for a move into
    a wall, and 0 otherwise, also for a move into the border. `gymnasium.make` truncates games after
    1,000 steps. `info` holds the position as (x, y).

    Raises ValueError for arguments out of range.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        *,
        density: float = 0.3,
        maze_seed: int = 0,
        slip_probability: float = 0.0,
        image_side: ImageSide = 8,
        render_mode: str | None = None,
    ) -> None:
        _check_slip(slip_probability)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be ansi or rgb_array, got {render_mode}")
        self.maze = Maze.draw(density, maze_seed)
        self.slip_probability = slip_probability
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Box(0.0, 1.0, (2 * image_side**2,), np.float32)
        self._digits = load_digits(image_side)
        self._cell = START
        self._playing = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Go to the start. A seed determines all later images and slips."""
        super().reset(seed=seed)
        self._cell = START
        self._playing = True
        return self._observe(self.np_random.random(2)), self._info()

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move. Raises InvalidAction for an action outside 0..3, ResetNeeded outside a game."""
        if not self._playing:
            raise gymnasium.error.ResetNeeded("reset the maze before the first step of a game")
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"action {action} is none of 0, 1, 2 and 3")
        drawn = self.np_random.random(3)
        move = (action + _turn(drawn[0], self.slip_probability)) % len(MOVES)
        reward = float(self.maze.rewards[self._cell, move])
        self._cell = int(self.maze.next_cells[self._cell, move])
        self._playing = self._cell != GOAL
        return self._observe(drawn[1:]), reward, not self._playing, False, self._info()

    def render(self) -> Any:
        """The maze as text ('#' wall, 'A' agent, 'G' goal) or a picture (288, 432, 3) uint8."""
        if self.render_mode == "ansi":
            return self._text()
        if self.render_mode == "rgb_array":
            return self._picture()
        return None

    def _observe(self, drawn: np.ndarray) -> np.ndarray:
        y, x = divmod(self._cell, SIDE)
        self._images = self._digits.images[self._digits.pick(np.array([x, y]), drawn)]
        observation: np.ndarray = self._images.reshape(-1)
        return observation

    def _info(self) -> dict[str, Any]:
        y, x = divmod(self._cell, SIDE)
        return {"position": (x, y)}

    def _text(self) -> str:
        cells = np.pad(np.where(self.maze.walls, "#", "."), 1, constant_values="#")
        for cell, letter in ((GOAL, "G"), (self._cell, "A")):
            y, x = divmod(cell, SIDE)
            cells[1 + y, 1 + x] = letter
        return "\n".join("".join(row) for row in cells)

    def _picture(self) -> np.ndarray:
        """The grid in its border, and to its right the two digits of the observation."""
        cells = np.pad(np.where(self.maze.walls[..., None], WALL, FREE), ((1, 1), (1, 1), (0, 0)))
        cells[[0, -1]] = cells[:, [0, -1]] = WALL
        for cell, colour in ((GOAL, GOAL_COLOUR), (self._cell, AGENT)):
            y, x = divmod(cell, SIDE)
            cells[1 + y, 1 + x] = colour
        grid = cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1).astype(np.uint8)
        side = len(grid) // 2
        panel = np.zeros((len(grid), side, 3), dtype=np.uint8) + np.array(WALL, dtype=np.uint8)
        for upper, image in zip((0, side), self._images, strict=True):
            digit = Image.fromarray((255 * image).astype(np.uint8))
            large = digit.resize((side - 2 * MARGIN, side - 2 * MARGIN), Image.Resampling.NEAREST)
            inner = slice(upper + MARGIN, upper + side - MARGIN), slice(MARGIN, side - MARGIN)
            panel[inner] = np.asarray(large)[..., None]
        return np.concatenate([grid, panel], axis=1)


class ManySteps(NamedTuple):
    """One step in N mazes; images are pairs of indices into `Digits.images`, of x and of y."""

    rewards: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool: the goal is reached
    truncated: np.ndarray  # (N,) bool: after 1,000 steps without it
    next_images: np.ndarray  # (N, 2) int64: the observation that the step leads to
    images: np.ndarray  # (N, 2) int64: the same, but after the end of a game the next game's first


class ManyMazes:
    """N mazes stepped together; the next game begins as soon as one ends.

    Maze i plays exactly what `MazeEnv` plays after `reset(seed=seeds[i])` if it is reset without a
    seed between its games.

    | argument | meaning |
    | --- | --- |
    | mazes, seeds | N of each; a seed determines the images and slips of its maze |
    | slip_probability | as in `MazeEnv` |
    """

    _DRAWN_AHEAD = 4_096

    def __init__(
        self, mazes: Sequence[Maze], seeds: Sequence[int], *, slip_probability: float
    ) -> None:
        _check_slip(slip_probability)
        self._next_cells = np.stack([maze.next_cells for maze in mazes])
        self._rewards = np.stack([maze.rewards for maze in mazes])
        self._slip_probability = slip_probability
        self._digits = load_digits()
        self._all = np.arange(len(mazes))
        # Each maze has its own random stream, as `MazeEnv` has. Games end at different times, so
        # each maze has its own position in the numbers drawn ahead.
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._drawn = np.stack([rng.random(self._DRAWN_AHEAD) for rng in self._rngs])
        self._used = np.zeros(len(mazes), dtype=np.int64)
        self._cells = np.full(len(mazes), START)
        self._steps = np.zeros(len(mazes), dtype=np.int64)

    def reset(self) -> np.ndarray:
        """Begin a game in every maze; return the images, (N, 2) int64."""
        self._cells[:] = START
        self._steps[:] = 0
        return self._observe(self._all)

    def step(self, actions: np.ndarray) -> ManySteps:
        """Move in every maze: actions (N,), integers in 0..3."""
        slips = self._random(self._all, 1)[:, 0]
        moves = (actions + _turn(slips, self._slip_probability)) % len(MOVES)
        rewards = self._rewards[self._all, self._cells, moves]
        self._cells = self._next_cells[self._all, self._cells, moves]
        self._steps += 1
        next_images = self._observe(self._all)
        terminated = self._cells == GOAL
        over = terminated | (self._steps >= MAX_STEPS)
        images = next_images
        if over.any():
            ended = np.flatnonzero(over)
            self._cells[ended] = START
            self._steps[ended] = 0
            images = next_images.copy()
            images[ended] = self._observe(ended)
        return ManySteps(rewards, terminated, over & ~terminated, next_images, images)

    def _observe(self, which: np.ndarray) -> np.ndarray:
        y, x = np.divmod(self._cells[which], SIDE)
        return self._digits.pick(np.stack([x, y], axis=1), self._random(which, 2))

    def _random(self, which: np.ndarray, count: int) -> np.ndarray:
        """Draw `count` numbers in [0, 1) from the streams of these mazes, (len(which), count)."""
        for i in which[self._used[which] + count > self._DRAWN_AHEAD]:
            left = self._drawn[i, self._used[i] :]
            fresh = self._rngs[i].random(self._DRAWN_AHEAD - len(left))
            self._drawn[i] = np.concatenate([left, fresh])
            self._used[i] = 0
        positions = self._used[which, None] + np.arange(count)
        self._used[which] += count
        numbers: np.ndarray = self._drawn[which[:, None], positions]
        return numbers


def _turn(drawn: np.ndarray, slip_probability: float) -> np.ndarray:
    """How far moves turn: +1 or −1, each with half the slip probability, else 0."""
    return np.where(drawn < slip_probability / 2, 1, np.where(drawn < slip_probability, -1, 0))


def _check_slip(probability: float) -> None:
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"slip_probability must lie in [0, 1], got {probability}")


gymnasium.register("ebu/Maze-v0", entry_point="envs.maze:MazeEnv", max_episode_steps=MAX_STEPS)
