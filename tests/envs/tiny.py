"""Small Gymnasium environments, registered when this module is imported."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Tiny(gymnasium.Env[Any, Any]):
    """Random observations; the reward is the action; ends at random, about every tenth step.

    `counts_games`: it also observes how many games this object has seen, which no seed resets.
    `forgets_its_seed`: it draws from a generator that its seed does not reach.
    """

    def __init__(
        self,
        space: spaces.Box,
        start: int = 0,
        end: float = 0.1,
        counts_games: bool = False,
        forgets_its_seed: bool = False,
    ) -> None:
        self.observation_space = space
        self.action_space = spaces.Discrete(3, start=start)
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


class Unsupported(Tiny):
    """Actions or observations of other kinds."""

    def __init__(self, actions: bool) -> None:
        super().__init__(spaces.Box(0, 1, (2,)))
        if actions:
            self.action_space = spaces.Box(-1, 1, (2,))
        else:
            self.observation_space = spaces.Dict({"a": spaces.Box(0, 1, (2,))})


class ManyActions(Tiny):
    """More actions than a byte can tell apart."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(0, 1, (2,)))
        self.action_space = spaces.Discrete(257)


class NeedsALibrary(Tiny):
    """Cannot be made here."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("no such\nlibrary is installed")


def _image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def _numbers(*shape: int, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype)


gymnasium.register("TinyColour-v0", Tiny, kwargs={"space": _image(40, 50, 3), "start": 5})
gymnasium.register("TinyGrey-v0", Tiny, kwargs={"space": _image(84, 84)})
gymnasium.register("TinyGreyChannel-v0", Tiny, kwargs={"space": _image(30, 30, 1)})
gymnasium.register("TinyNumbers-v0", Tiny, kwargs={"space": _numbers(2, 3, dtype=np.float64)})
gymnasium.register("TinyBytes-v0", Tiny, kwargs={"space": _image(7)})
gymnasium.register(
    "TinyEndless-v0", Tiny, max_episode_steps=6, kwargs={"space": _numbers(2), "end": 0.0}
)
gymnasium.register(
    "TinyLast-v0", Tiny, max_episode_steps=1, kwargs={"space": _numbers(2), "end": 1.0}
)
gymnasium.register("TinyCounting-v0", Tiny, kwargs={"space": _numbers(2), "counts_games": True})
gymnasium.register(
    "TinyForgetful-v0", Tiny, kwargs={"space": _numbers(2), "forgets_its_seed": True}
)
gymnasium.register("TinyContinuous-v0", Unsupported, kwargs={"actions": True})
gymnasium.register("TinyDict-v0", Unsupported, kwargs={"actions": False})
gymnasium.register("TinyManyActions-v0", ManyActions)
gymnasium.register("TinyNeedsALibrary-v0", NeedsALibrary)
# Called like an Atari game, but somebody's own.
gymnasium.register("Tetris-v0", Tiny, kwargs={"space": _numbers(2)})
