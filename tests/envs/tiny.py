"""Small Gymnasium environments, registered when this module is imported."""

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces


class Tiny(gymnasium.Env[Any, Any]):
    """Random observations; the reward is the action; ends at random, about every tenth step.

    `counts_games`: it also observes how many games this object has played, which no seed resets.
    `forgets_its_seed`: it draws from a generator that its seed does not reach.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        actions: spaces.Space[Any] = spaces.Discrete(3),  # noqa: B008 (never changed)
        end: float = 0.1,
        counts_games: bool = False,
        forgets_its_seed: bool = False,
    ) -> None:
        self.observation_space = space
        self.action_space = actions
        self._end = end
        self._counts_games = counts_games
        self._forgets_its_seed = forgets_its_seed
        self._games = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._forgets_its_seed:
            self.np_random = np.random.default_rng()
        self._games += 1
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        over = bool(self.np_random.random() < self._end)
        return self._observation(), float(action), over, False, {}

    def _observation(self) -> Any:
        space = self.observation_space
        assert isinstance(space, spaces.Box)
        if space.dtype == np.uint8:
            return self.np_random.integers(256, size=space.shape, dtype=np.uint8)
        drawn = self.np_random.random(space.shape)
        return (drawn + self._games if self._counts_games else drawn).astype(space.dtype)


class NeedsALibrary(gymnasium.Env[Any, Any]):
    """Cannot be made here."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("no such\nlibrary is installed")


def _image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def _numbers(*shape: int, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype)


def _register(name: str, space: spaces.Space[Any], limit: int | None = None, **kwargs: Any) -> None:
    gymnasium.register(
        f"{name}-v0", cast(Any, Tiny), max_episode_steps=limit, kwargs={"space": space, **kwargs}
    )


_register("TinyColour", _image(40, 50, 3), actions=spaces.Discrete(3, start=5))
_register("TinyGrey", _image(84, 84))
_register("TinyGrid", _image(10, 10, 4))
_register("TinyNumbers", _numbers(2, 3, dtype=np.float64))
_register("TinyEndless", _numbers(2), limit=6, end=0.0)
_register("TinyLast", _numbers(2), limit=1, end=1.0)
_register("TinyCounting", _numbers(2), counts_games=True)
_register("TinyForgetful", _numbers(2), forgets_its_seed=True)
_register("TinyContinuous", _numbers(2), actions=spaces.Box(-1, 1, (2,)))
_register("TinyDict", spaces.Dict({"a": _numbers(2)}))
_register("TinyManyActions", _numbers(2), actions=spaces.Discrete(257))  # a byte holds 256
_register("Tetris", _numbers(2))  # called like an Atari game
gymnasium.register("TinyNeedsALibrary-v0", cast(Any, NeedsALibrary))
