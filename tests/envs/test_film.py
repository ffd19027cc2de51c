"""A film shows the very game that was played, whatever the rules it was played under."""

import importlib.util
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from envs.atari import AtariVector
from envs.boundary import PIP_INSTALL
from envs.faults import EnvironmentFault
from envs.film import Camera, CannotFilmError, _AtariScreen, film
from envs.gymnasium_vector import GymnasiumVector
from envs.vector import ReplayMismatchError, VectorEnvironment, VectorStep
from tests.envs.play import actions_for
from tests.envs.play import play as play_rows

STICKY: dict[str, Any] = {"repeat_action_probability": 0.25, "full_action_space": True}


class Lights(gymnasium.Env[np.ndarray, Any]):
    """A random light every step; the game ends when the light is the one that was guessed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012
    action_space = spaces.Discrete(4, start=1)
    observation_space: spaces.Space[Any] = spaces.Box(0, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.light = int(self.np_random.integers(256))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Any]:
        self.light = int(self.np_random.integers(256))
        return self._observation(), float(self.light), self.light % 8 == action, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.light / 256, 0], dtype=np.float32)

    def render(self) -> Any:
        return np.full((20, 30, 3), self.light, dtype=np.uint8)


class FloatLights(Lights):
    """Rendered as matplotlib has colours: between 0 and 1."""

    def render(self) -> Any:
        return super().render() / 255


class GreyLights(Lights):
    """The light is seen, and not rendered."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (20, 30, 1), np.uint8)

    def _observation(self) -> np.ndarray:
        return np.full((20, 30, 1), self.light, dtype=np.uint8)


class DarkLights(Lights):
    """Numbers only."""

    metadata = {"render_modes": []}  # noqa: RUF012


KINDS = (Lights, FloatLights, GreyLights, DarkLights)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The made-up environments, known to Gymnasium for the tests of this file."""
    for kind in KINDS:
        gymnasium.register(f"{kind.__name__}-v0", cast(Any, kind))
    yield
    for kind in KINDS:
        del gymnasium.registry[f"{kind.__name__}-v0"]


def play(env: VectorEnvironment, steps: int) -> tuple[np.ndarray, list[VectorStep]]:
    """Random actions (steps, N), and every row they led to, the reset's first."""
    actions = actions_for(env, steps, seed=7)
    return actions, [env.reset(), *play_rows(env, actions)]


def games_of(rows: list[VectorStep], j: int) -> list[tuple[int, int]]:
    """(start, stop) of each finished game of environment j."""
    starts = [t for t, row in enumerate(rows) if row.started[j]]
    stops = [t for t, row in enumerate(rows) if row.terminated[j] or row.truncated[j]]
    return list(zip(starts, stops, strict=False))


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("breakout", {**STICKY, "max_frames_per_game": 400}),
        ("pong", {**STICKY, "noop_max": 30, "max_frames_per_game": 500}),
        # Each environment gets a new seed with its first game after 100 or 150 steps.
        ("freeway", {"noop_max": 30, "max_frames_per_game": 200, "reseed_every_frames": 800}),
        ("space_invaders", {**STICKY, "max_frames_per_game": 300, "reseed_every_frames": 1200}),
    ],
)
def test_a_camera_sees_the_game_that_was_played(game: str, options: dict[str, Any]) -> None:
    env = AtariVector(game, 2, seed=3, num_threads=1, **options)
    actions, rows = play(env, 400)
    assert len(games_of(rows, 1)) >= 3
    camera = Camera(env, 1)
    for t, row in enumerate(rows):
        if t > 0:
            camera.step(int(actions[t - 1, 1]))
        assert camera.reward == row.rewards[1], t
        assert camera.started == row.started[1], t
        assert camera.over == (row.terminated[1] | row.truncated[1]), t
        if t % 20 == 0:
            # Small and grey it is like the frame of this very step, not of one beside it.
            picture = Image.fromarray(camera.picture()).convert("L")
            small = np.asarray(picture.resize((84, 84), Image.Resampling.BOX), dtype=float)
            beside = [t, *(s for s in (t - 1, t + 1) if 0 <= s < len(rows))]
            distances = [np.abs(small - rows[s].frames[1]).mean() for s in beside]
            assert distances[0] == min(distances), t
            assert distances[0] < 10, t


def test_a_film_has_a_picture_of_the_start_and_one_after_each_action() -> None:
    env = AtariVector("breakout", 2, seed=1, noop_max=30, max_frames_per_game=200, num_threads=1)
    actions, rows = play(env, 120)
    before = env.state_dict()["journal"]["actions"].copy()
    assert games_of(rows, 0)[:2] == [(0, 50), (51, 101)]
    for start, stop in games_of(rows, 0)[:2]:
        pictures = list(film(env, 0, actions[:, 0], start, stop))
        assert len(pictures) == 51
        assert {(each.shape, each.dtype.name) for each in pictures} == {((210, 160, 3), "uint8")}
        assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 5  # in colour
        # The next picture does not overwrite it.
        assert any((a != b).any() for a, b in pairwise(pictures))
    assert (env.state_dict()["journal"]["actions"] == before).all()


@pytest.mark.parametrize(
    ("start", "stop", "words"), [(3, 50, "begins at 3"), (0, 30, "ends at 30")]
)
def test_what_is_no_game_is_not_filmed(start: int, stop: int, words: str) -> None:
    env = AtariVector("pong", 1, seed=1, max_frames_per_game=200, num_threads=1)
    actions, _ = play(env, 60)
    with pytest.raises(ReplayMismatchError, match=words):
        list(film(env, 0, actions[:, 0], start, stop))


@pytest.mark.parametrize("name", ["Lights", "FloatLights", "GreyLights"])
@pytest.mark.parametrize("reseed_every_frames", [40, 10_000])
def test_a_gymnasium_game_is_filmed_as_it_was_played(name: str, reseed_every_frames: int) -> None:
    env = GymnasiumVector(f"{name}-v0", 2, seed=4, reseed_every_frames=reseed_every_frames)
    actions, rows = play(env, 200)
    games = games_of(rows, 1)
    assert len(games) >= 5
    for start, stop in games:
        pictures = list(film(env, 1, actions[:, 1], start, stop))
        assert pictures[0].shape == (100, 150, 3)  # rendered as 20 × 30
        # The reward is the light, and the light is the picture.
        lights = [int(picture[0, 0, 0]) for picture in pictures[1:]]
        assert lights == [int(row.rewards[1]) for row in rows[start + 1 : stop + 1]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DarkLights-v0", "cannot render rgb_array"),
        pytest.param(
            "CartPole-v1",
            f"pygame is not installed, run .{re.escape(PIP_INSTALL)}",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("pygame") is not None, reason="pygame is installed"
            ),
        ),
    ],
)
def test_an_environment_without_pictures_says_why(name: str, words: str) -> None:
    env = GymnasiumVector(name, 1, seed=1)
    with pytest.raises(CannotFilmError, match=words):
        next(film(env, 0, np.empty(0, dtype=np.int64), 0, 0))


def test_an_emulator_that_hangs_while_it_is_filmed_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = Camera(AtariVector("pong", 1, seed=1, num_threads=1), 0)
    screen = camera._screen
    assert isinstance(screen, _AtariScreen)
    screen._watchdog.seconds = 1
    monkeypatch.setattr(screen, "_native", SimpleNamespace(step=lambda _: time.sleep(60)))
    with pytest.raises(EnvironmentFault, match="pong that is filmed has not answered"):
        camera.step(0)
    screen._watchdog.stop()
