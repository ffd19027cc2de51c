"""The maze: its rules, its digits, Gymnasium's and a peer's checkers, N of them in step."""

import shlex
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import scipy.stats
from gymnasium.utils.env_checker import check_env

from envs import make_vector
from envs.maze import ManyMazes, Maze, MazeEnv, load_digits
from envs.protocols import PROTOCOLS

UP, RIGHT, DOWN, LEFT = range(4)
# The statistics below fail by chance once in a million seeds, and the seeds are fixed.
ERROR_RATE = 1e-6

# The way: 9 down the left side, then 2 right, 3 up, 2 right, 3 down, 5 right.
SNAKE = """
A#........
.#........
.#........
.#........
.#........
.####.....
.#...#....
.#.#.#....
.#.#.#....
...#......
"""


def walls_of(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in text.split()])


def position(observation: np.ndarray, side: int = 8) -> tuple[int, int]:
    """(x, y) as the two images of an observation say it."""
    digits = load_digits(side)
    images = observation.reshape(2, 1, -1)
    same = (digits.images.reshape(1, len(digits.images), -1) == images).all(axis=2)
    assert same.any(axis=1).all(), "not an image of the set"
    labels = np.repeat(np.arange(10), digits.number)
    found = [set(labels[which].tolist()) for which in same]
    assert [len(each) for each in found] == [1, 1]
    return found[0].pop(), found[1].pop()


@pytest.mark.parametrize(
    "options",
    [{}, {"image_side": 28}, {"slip_probability": 0.2, "density": 0.5}, {"maze_seed": 3}],
    ids=str,
)
def test_gymnasium_has_nothing_to_say(options: dict[str, Any]) -> None:
    # Its checker's warnings are errors here, as in all tests.
    for render_mode in ("rgb_array", "ansi"):
        check_env(gymnasium.make("ebu/Maze-v0", render_mode=render_mode, **options).unwrapped)


def test_a_maze_by_hand() -> None:
    maze = Maze.from_walls(walls_of(SNAKE))
    assert maze.shortest_path == 9 + 2 + 3 + 2 + 3 + 5
    # The start: the border above and to the left, a wall to the right, a way down.
    assert maze.next_cells[0].tolist() == [0, 0, 10, 0]
    assert maze.rewards[0].tolist() == [0, -1, 0, 0]
    # Left of the goal: walls nowhere, the border below.
    assert maze.next_cells[98].tolist() == [88, 99, 98, 97]
    assert maze.rewards[98].tolist() == [0, 1000, 0, 0]


@pytest.mark.parametrize("blocked", [(0, 0), (9, 9), (3, 0)], ids=["start", "goal", "between"])
def test_a_maze_without_a_path_is_refused(blocked: tuple[int, int]) -> None:
    walls = walls_of(SNAKE)
    walls[blocked] = True
    with pytest.raises(ValueError, match="no path"):
        Maze.from_walls(walls)


def test_a_game_by_hand() -> None:
    env = MazeEnv()
    env.maze = Maze.from_walls(walls_of(SNAKE))
    observation, info = env.reset(seed=0)
    assert info == {"position": (0, 0)}
    assert position(observation) == (0, 0)
    played = [env.step(np.int64(action)) for action in (UP, RIGHT, LEFT, DOWN, UP)]
    assert [step[1] for step in played] == [0, -1, 0, 0, 0]
    assert [position(step[0]) for step in played] == [(0, 0), (0, 0), (0, 0), (0, 1), (0, 0)]
    way = [DOWN] * 9 + [RIGHT] * 2 + [UP] * 3 + [RIGHT] * 2 + [DOWN] * 3 + [RIGHT] * 5
    played = [env.step(np.int64(action)) for action in way]
    assert [step[1] for step in played] == [0] * (len(way) - 1) + [1000]
    assert [step[2] for step in played] == [False] * (len(way) - 1) + [True]
    assert not any(step[3] for step in played)
    assert position(played[-1][0]) == played[-1][4]["position"] == (9, 9)


def test_no_step_outside_a_game_and_no_other_action() -> None:
    env = MazeEnv(density=0.0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(UP))
    env.reset(seed=0)
    for action in (-1, 4, 0.5):
        with pytest.raises(gymnasium.error.InvalidAction):
            env.step(action)  # type: ignore[arg-type]
    for action in [RIGHT] * 9 + [DOWN] * 9:
        env.step(np.int64(action))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(UP))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("density", 0.61), ("density", -0.1), ("maze_seed", -1), ("slip_probability", 1.5)),
        *(("image_side", 16), ("render_mode", "human")),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        MazeEnv(**{name: value})


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_mazes_have_the_walls_of_their_density_and_a_way(density: float) -> None:
    mazes = [Maze.draw(density, seed) for seed in range(20)]
    assert all(not maze.walls[0, 0] and not maze.walls[9, 9] for maze in mazes)
    assert all(18 <= maze.shortest_path <= 60 for maze in mazes)
    share = np.mean([maze.walls.mean() for maze in mazes])
    # To be solvable takes some walls away: the denser, the more.
    assert 0.75 * density < share < density


def test_the_digits_are_sorted_and_enlarged() -> None:
    small, large = load_digits(8), load_digits(28)
    assert small.images.shape == (1797, 8, 8)
    assert large.images.shape == (1797, 28, 28)
    for digits in (small, large):
        assert (digits.images.min(), digits.images.max()) == (0.0, 1.0)
        assert digits.number.sum() == 1797
        np.testing.assert_array_equal(digits.first[1:], np.cumsum(digits.number)[:-1])
    # Enlarging keeps the mean brightness.
    means = small.images.mean(axis=(1, 2)), large.images.mean(axis=(1, 2))
    np.testing.assert_allclose(*means, atol=0.02)
    chosen = small.pick(np.array([3, 3]), np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert chosen.tolist() == [small.first[3], small.first[3] + small.number[3] - 1]
    env = MazeEnv(image_side=28)
    assert position(env.reset(seed=0)[0], side=28) == (0, 0)


@pytest.mark.parametrize("slip_probability", [0.0, 0.2, 1.0])
def test_moves_slip_to_the_perpendiculars(slip_probability: float) -> None:
    draws = 4_000
    # Down from the middle of an empty maze.
    env = MazeEnv(density=0.0, slip_probability=slip_probability)
    env.reset(seed=0)
    counts = {(0, 1): 0, (-1, 0): 0, (1, 0): 0}
    for _ in range(draws):
        env._cell = 44
        _, _, _, _, info = env.step(np.int64(DOWN))
        x, y = info["position"]
        counts[x - 4, y - 4] += 1
    shares = (1 - slip_probability, slip_probability / 2, slip_probability / 2)
    for count, share in zip(counts.values(), shares, strict=True):
        assert scipy.stats.binomtest(count, draws, share).pvalue > ERROR_RATE


@pytest.mark.parametrize("slip_probability", [0.0, 0.2])
def test_many_mazes_play_what_single_ones_play(slip_probability: float) -> None:
    steps, densities, seeds = 2_200, (0.2, 0.3, 0.5), (7, 8, 7)
    mazes = [Maze.draw(density, index) for index, density in enumerate(densities)]
    many = ManyMazes(mazes, seeds, slip_probability=slip_probability)
    actions = np.random.default_rng(0).integers(4, size=(steps, len(mazes)))
    # A drift to the goal, so that games end both ways.
    actions[:, :2] = np.where(actions[:, :2] == UP, RIGHT, actions[:, :2])
    first = many.reset()
    played = [many.step(row) for row in actions]
    pixels = load_digits().images
    ends = {"terminated": 0, "truncated": 0}
    for i, density in enumerate(densities):
        env = gymnasium.make(
            "ebu/Maze-v0", density=density, maze_seed=i, slip_probability=slip_probability
        )
        observation, _ = env.reset(seed=seeds[i])
        np.testing.assert_array_equal(pixels[first[i]].reshape(-1), observation)
        for row, step in zip(actions, played, strict=True):
            observation, reward, terminated, truncated, _ = env.step(row[i])
            np.testing.assert_array_equal(pixels[step.next_images[i]].reshape(-1), observation)
            assert step.rewards[i] == reward
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            if terminated or truncated:
                ends["terminated" if terminated else "truncated"] += 1
                observation, _ = env.reset()
            np.testing.assert_array_equal(pixels[step.images[i]].reshape(-1), observation)
    assert min(ends.values()) > 0


def test_a_maze_is_shown_as_text() -> None:
    env = MazeEnv(render_mode="ansi")
    env.maze = Maze.from_walls(walls_of(SNAKE))
    env.reset(seed=0)
    rows = env.render().split("\n")
    assert rows[0] == rows[-1] == "#" * 12
    assert [row[1:-1] for row in rows[1:-1]] == [*SNAKE.split()[:9], "...#.....G"]
    env.step(np.int64(DOWN))
    assert [row[:3] for row in env.render().split("\n")[1:3]] == ["#.#", "#A#"]


def test_without_scikit_learn_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"-m pip install .*scikit-learn") as refused:
        make_vector("ebu/Maze-v0", 1, seed=0, protocol=PROTOCOLS["paper"], training=True)
    assert "\n" not in str(refused.value)
    assert shlex.quote(sys.executable) in str(refused.value)
