"""Colour pictures of games, made by replaying their actions.

Agents see small grey frames. But an environment is a function of its seed and of its actions, so
the same game can be replayed with a picture for people.
"""

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import gymnasium
import numpy as np
from ale_py import ALEInterface, roms

from envs.atari import RULES, AtariVector, make_emulators
from envs.boundary import Environment, reason
from envs.faults import EnvironmentFault
from envs.gymnasium_vector import GymnasiumVector
from envs.vector import ReplayMismatchError, environment_seed
from envs.watchdog import Watchdog

SHOWN_SIDE = 160
"""The longer side, in pixels, that smaller pictures are enlarged to, by a whole number."""


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
            self._screen = _GymnasiumScreen(env, environment)
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
        self._watchdog = Watchdog(lambda: f"the emulator of {identity['game']} that is filmed")
        weakref.finalize(self, self._watchdog.stop)

    def reset(self, seed: int) -> None:
        with self._watchdog:
            self._frames, _ = self._native.reset(seed=np.array([seed]))

    def step(self, action: int) -> tuple[float, bool]:
        with self._watchdog:
            self._frames, rewards, terminated, truncated, _ = self._native.step(np.array([action]))
        return float(rewards[0]), bool(terminated[0] | truncated[0])

    def picture(self) -> np.ndarray:
        return np.array(self._frames[0, 0])

    def close(self) -> None:
        self._watchdog.stop()
        self._native.close()


class _GymnasiumScreen:
    def __init__(self, env: GymnasiumVector, environment: int) -> None:
        self._recipe, self._index = env.recipe, environment
        self._watchdog = Watchdog(lambda: env.recipe.game)
        weakref.finalize(self, self._watchdog.stop)
        example = Environment(self._recipe, environment, self._watchdog)
        example.close()
        if not example.renders and env.observations.picture is None:
            raise CannotFilmError(
                f"{self._recipe.game} has no pictures: it cannot render rgb_array"
            )
        self._mode = "rgb_array" if example.renders else None
        self._env: Environment | None = None

    def reset(self, seed: int) -> None:
        if self._env is not None:
            self._env.close()
        try:
            self._env = Environment(
                self._recipe, self._index, self._watchdog, render_mode=self._mode
            )
        except EnvironmentFault as fault:
            self._refuse_missing_library(fault)
            raise
        self._observation = self._env.reset(seed)
        self._over = False

    def step(self, action: int) -> tuple[float, bool]:
        assert self._env is not None
        if self._over:
            self._observation = self._env.reset()
            self._over = False
            return 0.0, False
        self._observation, reward, terminated, truncated = self._env.step(action)
        self._over = terminated or truncated
        return reward, self._over

    def picture(self) -> np.ndarray:
        assert self._env is not None
        try:
            picture = self._env.picture(self._observation)
        except EnvironmentFault as fault:
            self._refuse_missing_library(fault)
            raise
        assert picture is not None
        times = max(1, SHOWN_SIDE // max(1, *picture.shape[:2]))
        return picture.repeat(times, axis=0).repeat(times, axis=1)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._watchdog.stop()

    def _refuse_missing_library(self, fault: EnvironmentFault) -> None:
        if isinstance(fault.__cause__, gymnasium.error.DependencyNotInstalled):
            raise CannotFilmError(
                f"{self._recipe.game} has no pictures: {reason(fault.__cause__)}"
            ) from None
