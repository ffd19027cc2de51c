# ruff: noqa: NPY002, RUF012 (slips are the point)
"""Gymnasium environments with the slips of real ones: --game tests.faulty:NAME-v0."""

import collections
import itertools
import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register


class Base(gym.Env[Any, Any]):
    """20 steps, four numbers seen, three actions, reward 1."""

    metadata: dict[str, Any] = {"render_modes": []}
    action_space = spaces.Discrete(3)
    length = 20

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = self.space()
        self.t = 0

    def space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def observation(self) -> np.ndarray:
        return self.np_random.normal(size=4).astype(np.float32)

    def reward(self) -> Any:
        return 1.0

    def ends(self) -> tuple[bool, bool]:
        return self.t >= self.length, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        terminated, truncated = self.ends()
        return self.observation(), self.reward(), terminated, truncated, {}


class RenderFails(Base):
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def render(self) -> Any:
        raise RuntimeError("no display")


class RenderKills(Base):
    """As native code that draws where it finds no display."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}
    kills = True

    def render(self) -> Any:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((8, 8, 3), np.uint8)


class CannotBeMadeToRender(Base):
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode == "rgb_array":
            raise OSError("no EGL")
        super().__init__(render_mode)


class ChannelsFirst(Base):
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (3, 84, 84), np.uint8)

    def observation(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (3, 84, 84)).astype(np.uint8)


class StackedFrames(Base):
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def observation(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (4, 84, 84)).astype(np.uint8)


class FloatImage(Base):
    def space(self) -> spaces.Box:
        return spaces.Box(0, 1, (84, 84, 3), np.float32)

    def observation(self) -> np.ndarray:
        return self.np_random.random((84, 84, 3)).astype(np.float32)


class Ram(Base):
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (128,), np.uint8)

    def observation(self) -> np.ndarray:
        return self.np_random.integers(0, 256, 128).astype(np.uint8)


class NanReward(Base):
    def reward(self) -> Any:
        return float("nan") if self.np_random.random() < 0.002 else 1.0


class NanObservation(Base):
    def observation(self) -> np.ndarray:
        values = super().observation()
        values[0] = np.nan if self.np_random.random() < 0.002 else values[0]
        return values


class NoneReward(Base):
    def reward(self) -> Any:
        return None if self.t % 7 == 0 else 1.0


class ArrayReward(Base):
    def reward(self) -> Any:
        return np.array([1.0])


class Endless(Base):
    def ends(self) -> tuple[bool, bool]:
        return False, False


class GlobalRandom(Base):
    """Not a function of its seed."""

    def observation(self) -> np.ndarray:
        return np.random.normal(size=4).astype(np.float32)

    def ends(self) -> tuple[bool, bool]:
        return bool(np.random.random() < 0.05), False


class OldInterface(Base):
    def step(self, action: Any) -> Any:
        self.t += 1
        return self.observation(), 1.0, self.t >= self.length, {}


class Crashes(Base):
    def step(self, action: Any) -> Any:
        if self.np_random.random() < 0.001:
            raise ValueError("simulator lost")
        return super().step(action)


class Hangs(Base):
    def step(self, action: Any) -> Any:
        if self.np_random.random() < 0.001:
            time.sleep(10**6)
        return super().step(action)


class HoldsTheLock(Base):
    """Its third copy, in the third step of its second game: native code that lets no thread run."""

    copies, length = 0, 5

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        HoldsTheLock.copies += 1
        self.number, self.games = self.copies, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.games += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        if (self.number, self.games, self.t) == (3, 2, 2):
            collections.deque(itertools.repeat(0), maxlen=0)
        return super().step(action)


class NeedsArgument(Base):
    def __init__(self, level: int, render_mode: str | None = None) -> None:
        super().__init__(render_mode)


class HangsInReset(Base):
    """In Python code that keeps what is raised there to itself."""

    games = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.games += 1
        while self.games == 3:
            try:
                time.sleep(10**6)
            except Exception:
                continue
        return super().reset(seed=seed, options=options)


class GlobalSeed(Base):
    """Draws from one generator that all copies share and each reset seeds."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            np.random.seed(seed)
        return super().reset(seed=seed, options=options)

    def observation(self) -> np.ndarray:
        return np.random.normal(size=4).astype(np.float32)


class FewCopies(Base):
    """Can be made as often as `left` says."""

    left = 10**9

    def __init__(self, render_mode: str | None = None) -> None:
        FewCopies.left -= 1
        if FewCopies.left < 0:
            raise OSError("all ports are taken")
        super().__init__(render_mode)


class OneArray(Base):
    """Writes every observation into the same array."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.image = np.empty((84, 84), np.uint8)

    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (84, 84), np.uint8)

    def observation(self) -> np.ndarray:
        self.image[:] = self.np_random.integers(0, 256, self.image.shape)
        return self.image


class WrongShape(Base):
    def observation(self) -> np.ndarray:
        return np.ones(5 if self.t == 7 else 4, np.float32)


for _name, _kind in list(globals().items()):
    if isinstance(_kind, type) and issubclass(_kind, Base) and _kind is not Base:
        register(f"{_name}-v0", f"tests.faulty:{_name}", disable_env_checker=True)
