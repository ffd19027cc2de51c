"""The boundary to Gymnasium: makes, resets, steps and renders, and checks what comes back."""

import contextlib
import importlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.faults import EnvironmentFault, EnvironmentHang
from envs.observations import Observations, abbreviate, abbreviate_value, observations_of
from envs.watchdog import Watchdog

ResultT = TypeVar("ResultT")
MOST_ACTIONS = 256
"""The journal of a vector environment holds an action in a byte."""
LONGEST_STEPS = 108_000
"""Steps after which an evaluation game is truncated whatever limit its environment registered: as
many as there are frames in the 30 minutes of an Atari game."""


@dataclass(frozen=True)
class Recipe:
    """How to make an environment.

    | field | meaning |
    | --- | --- |
    | game | a registered id, `CartPole-v1` or `module:MyEnv-v0` |
    | args | keyword arguments of its constructor, by name |
    | wrappers | `module:Wrapper` each, the innermost first |
    | max_steps | a game is truncated after this many steps; None: when the environment says so |
    | endless_steps | as `max_steps`, for an environment that was registered without a limit; of one
      with a limit `LONGEST_STEPS`. None: neither |
    """

    game: str
    args: Mapping[str, Any]
    wrappers: tuple[str, ...] = ()
    max_steps: int | None = None
    endless_steps: int | None = None

    def make(self, **options: Any) -> gymnasium.Env[Any, Any]:
        """A new environment; raises what its constructor raises."""
        # What Gymnasium's own checker warns of is refused here.
        made = gymnasium.make(self.game, disable_env_checker=True, **self.args, **options)
        for wrapper in self.wrappers:
            flag = f"--env-wrappers {wrapper}"
            module, _, name = wrapper.partition(":")
            try:
                made = getattr(importlib.import_module(module), name)(made)
            except Exception as error:
                alone = (
                    "; a wrapper is called with the environment alone: to give it more, name a "
                    "function of your own that does, module:function"
                )
                raise gymnasium.error.Error(
                    f"{flag}: {reason(error)}{alone if isinstance(error, TypeError) else ''}"
                ) from error
            if not all(callable(getattr(made, name, None)) for name in ("reset", "step")):
                raise gymnasium.error.Error(
                    f"{flag} returned {abbreviate_value(made)}, not an environment"
                )
        return made

    def identity(self) -> dict[str, Any]:
        """What differs from the game as it is registered, as JSON values."""
        given = {
            "env_args": dict(self.args),
            "env_wrappers": list(self.wrappers),
            "max_steps": self.max_steps,
            "endless_steps": self.endless_steps,
        }
        return {name: value for name, value in given.items() if value}


_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def parse_args(words: Sequence[str]) -> dict[str, Any]:
    """Arguments as they are typed, `level=3 name=dark fast=true`, to values.

    Raises ValueError, in one line, for a word that is no NAME=VALUE.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{abbreviate_value(word)} is not NAME=VALUE, such as level=3")
        try:
            value = json.loads(_PYTHON_WORDS.get(text, text))
        except (ValueError, RecursionError):
            value = text
        arguments[name] = value
    return arguments


class Environment:
    """One Gymnasium environment that is asked for nothing without checking the answer.

    Raises EnvironmentFault whenever a call raises, does not return, or returns something else than
    Gymnasium's interface says; ValueError when it is made with actions or observations that are not
    supported.

    | argument | meaning |
    | --- | --- |
    | index | of the environment in its vector |
    | watchdog | notices calls that do not return |
    | render_mode | as in Gymnasium |

    | attribute | meaning |
    | --- | --- |
    | observations | what the observations are taken for |
    | num_actions | actions are 0..num_actions - 1 |
    """

    def __init__(
        self, recipe: Recipe, index: int, watchdog: Watchdog, *, render_mode: str | None = None
    ) -> None:
        self._index = index
        self._name = f"environment {index} of {recipe.game}"
        self._watchdog = watchdog
        self._doing = "make"
        self._games = self._steps = 0
        options = {} if render_mode is None else {"render_mode": render_mode}
        if not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
            # Otherwise pygame looks for a screen and for speakers, and complains on stderr.
            os.environ |= {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"} | os.environ
        self._env: gymnasium.Env[Any, Any] = self._ask("make", recipe.make, **options)
        modes = getattr(self._member("metadata", None), "get", lambda _: None)("render_modes")
        self.renders = isinstance(modes, Collection) and "rgb_array" in modes
        actions, space = self._member("action_space"), self._member("observation_space")
        try:
            self.num_actions, self._first_action = _actions(actions)
            self.observations: Observations = observations_of(space)
        except ValueError:
            raise
        except Exception as error:  # whatever a space has for its bounds and its number
            raise self._fault(f"its spaces cannot be read: {reason(error)}") from error
        limited = getattr(self._member("spec", None), "max_episode_steps", None) is not None
        endless = recipe.endless_steps and (LONGEST_STEPS if limited else recipe.endless_steps)
        self._limit = recipe.max_steps or endless or math.inf

    def reset(self, seed: int | None = None) -> Any:
        """Start a game, seeded or not, and return its first observation, not checked yet."""
        self._games += 1
        self._steps = 0
        returned = self._ask("reset", self._env.reset, **({} if seed is None else {"seed": seed}))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise self._fault(f"reset returned {_count(returned)} instead of (observation, info)")
        observation, info = returned
        self._check_info(info)
        return observation

    def step(self, action: int) -> tuple[Any, float, bool, bool]:
        """Take a step: observation, not checked yet, reward, terminated, truncated."""
        self._steps += 1
        returned = self._ask("step", self._env.step, self._first_action + action)
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise self._fault(
                f"step returned {_count(returned)} instead of (observation, reward, terminated, "
                "truncated, info)"
            )
        observation, reward, terminated, truncated, info = returned
        self._check_info(info)
        over = self._flag(terminated, "terminated")
        cut = self._flag(truncated, "truncated") or self._steps >= self._limit
        return observation, self._number(reward), over, cut and not over

    def frame(self, observation: Any) -> np.ndarray:
        """The frame that an observation becomes."""
        return self._read(self.observations.read, observation)

    def picture(self, observation: Any) -> np.ndarray | None:
        """(H, W, 3) uint8 for people: rendered, or the observation; None where there is neither."""
        if self.renders:
            pixels = _as_bytes(np.asarray(self._ask("render", self._env.render)))
            if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
                pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise self._fault(f"render returned {pixels.dtype} of shape {pixels.shape}")
            return pixels.copy()
        picture = self.observations.picture
        return None if picture is None else self._read(picture, observation)

    def close(self) -> None:
        """Release the environment; what it complains of then is of no use to anybody."""
        with contextlib.suppress(EnvironmentFault):
            self._ask("close", self._env.close)

    def where(self) -> str:
        """The environment and the call that is made, or was made last."""
        return f"{self._name}, {self._doing}{self._when()}"

    def _when(self) -> str:
        return f" {self._steps} of its game {self._games}" if self._games else ""

    def _member(self, name: str, *default: Any) -> Any:
        """An attribute of the environment, which may be code of its own."""
        return self._ask(f"its {name}", getattr, self._env, name, *default)

    def _ask(
        self, doing: str, function: Callable[..., ResultT], *args: Any, **named: Any
    ) -> ResultT:
        watchdog = self._watchdog
        self._doing = doing
        watchdog.describe = self.where
        watchdog.place = (self._index, self._games, self._steps)
        try:
            with watchdog:
                return function(*args, **named)
        except EnvironmentHang:
            raise
        except (Exception, SystemExit) as error:
            if doing == "make":
                raise EnvironmentFault(
                    f"{self._name} cannot be made: {reason(error)}{_advice(error)}"
                ) from error
            raise self._fault(f"{doing} raised {reason(error)}") from error

    def _read(self, read: Callable[[Any], np.ndarray], observation: Any) -> np.ndarray:
        try:
            return read(observation)
        except Exception as error:
            what = str(error) if type(error) is ValueError else reason(error)
            raise self._fault(f"its observation {what}") from error

    def _fault(self, what: str) -> EnvironmentFault:
        when = f", step{self._when()}" if self._games else ""
        return EnvironmentFault(f"{self._name}{when}: {what}")

    def _check_info(self, info: Any) -> None:
        if not isinstance(info, Mapping):
            what = f"the info {abbreviate_value(info)}, not a dictionary"
            raise self._fault(f"{self._doing} returned {what}")

    def _number(self, reward: Any) -> float:
        try:
            value = np.asarray(reward)
            number = float(value) if value.shape == () and value.dtype.kind in "biuf" else None
        except Exception:
            number = None
        if number is None:
            raise self._fault(f"its reward is {abbreviate_value(reward)}, not a number")
        if not abs(number) <= _LARGEST:
            raise self._fault(f"its reward is {number:g}, not finite")
        return number

    def _flag(self, value: Any, name: str) -> bool:
        if value is True or value is False:
            return value
        array = np.asarray(value)
        if array.shape != () or array.dtype.kind not in "biu" or array not in (0, 1):
            raise self._fault(f"{name} is {abbreviate_value(value)}, not true or false")
        return bool(array)


def _actions(space: Any) -> tuple[int, int]:
    """How many actions there are, and the first of them."""
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"has actions {abbreviate(space)}; only Discrete ones can be chosen by a "
            "Q-network: choose another game, or make them Discrete by an argument (--env-args "
            "continuous=False, where there is one) or a wrapper (--env-wrappers module:Name)"
        )
    if not 1 <= space.n <= MOST_ACTIONS:
        raise ValueError(f"has {space.n} actions; 1 to {MOST_ACTIONS} are supported")
    return int(space.n), int(space.start)


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Brightnesses from 0 to 1, as matplotlib has them, scaled to bytes; others as they are."""
    kind, dim = pixels.dtype.kind, pixels.size and pixels.min() >= 0 and pixels.max() <= 1
    return np.rint(pixels * 255.0).astype(np.uint8) if kind in "bf" and dim else pixels


_LARGEST = float(np.finfo(np.float32).max)


PIP_INSTALL = f"{shlex.quote(sys.executable)} -m pip install"


def reason(error: BaseException) -> str:
    """What was raised, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        # For the Python that runs: another's pip may come first.
        text = re.sub(r"(?<!-m )\bpip install", lambda _: PIP_INSTALL, text)
    if isinstance(error, gymnasium.error.Error) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _advice(error: BaseException) -> str:
    # Of a constructor called with too few, too many or unknown arguments.
    return "; --env-args NAME=VALUE gives arguments" if isinstance(error, TypeError) else ""


def _count(returned: Any) -> str:
    if isinstance(returned, tuple):
        return f"{len(returned)} values"
    return f"one {type(returned).__name__}"
