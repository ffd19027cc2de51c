"""Games in colour, by playing them again.

Agents see small grey frames. But an environment's whole course is a function of its seed and of the
actions it was sent, so the same game can be had again with a picture for people.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import gymnasium
import numpy as np
from ale_py import ALEInterface, roms

from envs.atari import AtariVector, native_emulators
from envs.gymnasium_vector import GymnasiumVector
from envs.vector import ReplayMismatchError, VectorEnvironment, environment_seed


class CannotFilmError(ValueError):
    """The environment gives no pictures; the one-line message says why."""


def film(
    env: VectorEnvironment, environment: int, actions: np.ndarray, start: int, stop: int
) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8 of one game: its first frame, then one for each of its actions.

    | argument | shape | meaning |
    | --- | --- | --- |
    | env | | played the game; it is read, not stepped |
    | environment | | which of its N environments did |
    | actions | (steps,) int | everything that was sent to this environment since `env.reset()` |
    | start, stop | | the game's actions are `actions[start:stop]` |

    `actions[:stop]` are all played again, so a late game takes a while to appear.

    Raises CannotFilmError for an environment without pictures, and ReplayMismatchError if no game
    begins at `start` or none ends at `stop` (which is not asked of an empty game).
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
    """One environment of a vector environment from its reset on, once more and in colour.

    Takes every action that the environment takes, those ignored between two games included.

    | attribute | meaning |
    | --- | --- |
    | started | the picture is the first of a game |
    | over | the game ended in the last step; the next action is ignored |
    | reward | raw reward of the last step |
    """

    def __init__(self, env: VectorEnvironment, environment: int) -> None:
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
        """Take the next action; where the last game is over, begin the next one instead."""
        self._steps += 1
        if self.over and self._steps >= self._reseed_after_steps:
            self._reset()
            return
        self.started = self.over
        self.reward, self.over = self._screen.step(action)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: what a person would see now."""
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
        cartridge = roms.get_rom_path(identity["game"])
        assert cartridge is not None
        console = ALEInterface()
        console.loadROM(cartridge)
        self._native = native_emulators(
            identity["game"],
            1,
            repeat_action_probability=identity["repeat_action_probability"],
            full_action_space=identity["full_action_space"],
            noop_max=identity["noop_max"],
            max_frames_per_game=identity["max_frames_per_game"],
            num_threads=1,
            shape=console.getScreenDims(),
            colour=True,
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
                shown = self._env.render()
            except gymnasium.error.DependencyNotInstalled as error:
                raise CannotFilmError(f"{self._env_id} gives no pictures: {error}") from None
        else:
            shown = self._observation
        picture = np.asarray(shown)
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise CannotFilmError(f"{self._env_id} gives no pictures: it cannot render rgb_array")
        if picture.ndim == 2:
            picture = np.repeat(picture[:, :, None], 3, axis=2)
        return picture.copy()

    def close(self) -> None:
        self._env.close()
