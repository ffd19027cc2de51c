"""Colour pictures of games, made by replaying their actions.

Agents see small grey frames. But an environment is a function of its seed and of its actions, so
the same game can be replayed with a picture for people.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import gymnasium
import numpy as np
from ale_py import ALEInterface, roms

from envs.atari import RULES, AtariVector, make_emulators
from envs.gymnasium_vector import GymnasiumVector
from envs.vector import ReplayMismatchError, environment_seed


class CannotFilmError(ValueError):
    """The environment has no pictures; the one-line message says why."""


def film(
    env: object, environment: int, actions: np.ndarray, start: int, stop: int
) -> Iterator[np.ndarray]:
    """Yield pictures (H, W, 3) uint8 of one game: its first frame, then one after each action.

    | argument | shape | meaning |
    | --- | --- | --- |
    | env | | the vector environment that played the game; read, not stepped |
    | environment | | index of the one that played it |
    | actions | (steps,) int | all actions sent to this environment since `env.reset()` |
    | start, stop | | the game's actions are `actions[start:stop]` |

    All of `actions[:stop]` are replayed, so a late game takes a while to appear.

    Raises CannotFilmError for an environment without pictures, and ReplayMismatchError if no game
    begins at `start` or, where `stop > start`, none ends at `stop`.
    """
    camera = Camera(env, environment)
    try:
        for step in range(stop + 1):
            if step == start and not camera.started:
                raise ReplayMismatchError(f"no game of environment {environment} begins at {start}")
            if step >= start:
                yield camera.picture()
            if step < stop:
                camera.step(int(actions[step]))
        if stop > start and not camera.over:
            raise ReplayMismatchError(f"no game of environment {environment} ends at {stop}")
    finally:
        camera.close()


class Camera:
    """Replay of one environment of a vector environment, from its reset on and in colour.

    Send it every action that the environment takes, including those ignored between two games.

    | attribute | meaning |
    | --- | --- |
    | started | the picture is the first of a game |
    | over | the game ended in the last step; the next action is ignored |
    | reward | raw reward of the last step |
    """

    def __init__(self, env: object, environment: int) -> None:
        if not isinstance(env, AtariVector | GymnasiumVector):
            raise CannotFilmError(f"{type(env).__name__} cannot be filmed")
        self._seed: int = env.identity["seed"]
        self._environment = environment
        self._reseed_after_steps = env.reseed_after_steps
        self._seedings = 0
        self.over: bool
        self._screen: _Screen
        if isinstance(env, AtariVector):
            self._screen = _AtariScreen(env.identity)
        else:
            self._screen = _GymnasiumScreen(env.identity)
        self._reset()

    def step(self, action: int) -> None:
        """Take the next action; after the end of a game, begin the next game instead."""
        self._steps += 1
        if self.over and self._steps >= self._reseed_after_steps:
            self._reset()
            return
        self.started = self.over
        self.reward, self.over = self._screen.step(action)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: the screen as a person sees it."""
        return self._screen.picture()

    def close(self) -> None:
        """Release the environment."""
        self._screen.close()

    def _reset(self) -> None:
        self._screen.reset(environment_seed(self._seed, self._environment, self._seedings))
        self._seedings += 1
        self._steps = 0
        self.started, self.over, self.reward = True, False, 0.0


class _Screen(Protocol):
    def reset(self, seed: int) -> None: ...
    def step(self, action: int) -> tuple[float, bool]: ...
    def picture(self) -> np.ndarray: ...
    def close(self) -> None: ...


class _AtariScreen:
    def __init__(self, identity: dict[str, Any]) -> None:
        rom = roms.get_rom_path(identity["game"])
        assert rom is not None
        console = ALEInterface()
        console.loadROM(rom)
        self._native = make_emulators(
            identity["game"],
            1,
            num_threads=1,
            shape=console.getScreenDims(),
            colour=True,
            **{rule: identity[rule] for rule in RULES},
        )

    def reset(self, seed: int) -> None:
        self._frames, _ = self._native.reset(seed=np.array([seed]))

    def step(self, action: int) -> tuple[float, bool]:
        self._frames, rewards, terminated, truncated, _ = self._native.step(np.array([action]))
        return float(rewards[0]), bool(terminated[0] | truncated[0])

    def picture(self) -> np.ndarray:
        return np.array(self._frames[0, 0])

    def close(self) -> None:
        self._native.close()


class _GymnasiumScreen:
    def __init__(self, identity: dict[str, Any]) -> None:
        self._env_id: str = identity["game"]
        self._env: gymnasium.Env[Any, Any] = gymnasium.make(self._env_id)
        self._renders = "rgb_array" in self._env.metadata.get("render_modes", [])

    def reset(self, seed: int) -> None:
        self._env.close()
        mode = {"render_mode": "rgb_array"} if self._renders else {}
        self._env = gymnasium.make(self._env_id, **mode)  # type: ignore[arg-type]
        self._observation, _ = self._env.reset(seed=seed)
        self._over = False

    def step(self, action: int) -> tuple[float, bool]:
        if self._over:
            self._observation, _ = self._env.reset()
            self._over = False
            return 0.0, False
        first = int(self._env.action_space.start)  # type: ignore[attr-defined]
        self._observation, reward, terminated, truncated, _ = self._env.step(first + action)
        self._over = terminated or truncated
        return float(reward), self._over

    def picture(self) -> np.ndarray:
        if self._renders:
            try:
                pixels = self._env.render()
            except gymnasium.error.DependencyNotInstalled as error:
                raise CannotFilmError(f"{self._env_id} has no pictures: {error}") from None
        else:
            pixels = self._observation
        picture = np.asarray(pixels)
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise CannotFilmError(f"{self._env_id} has no pictures: it cannot render rgb_array")
        if picture.ndim == 2:
            picture = np.repeat(picture[:, :, None], 3, axis=2)
        return picture.copy()

    def close(self) -> None:
        self._env.close()
