"""N copies of any Gymnasium environment with discrete actions."""

import weakref

import gymnasium
import numpy as np

from envs.boundary import Environment, Recipe
from envs.determinism import find_difference
from envs.faults import EnvironmentFault
from envs.vector import RawStep, VectorEnvironment, environment_seed
from envs.watchdog import Watchdog


class GymnasiumVector(VectorEnvironment):
    """N copies of a registered Gymnasium environment, stepped one after the other.

    `observations.text` says what the observations are taken for. Rewards are raw, and no life is
    ever lost.

    To resume a run, an environment must be a function of its seed and its actions: it draws random
    numbers from its own `np_random` alone. One that does not raises ReplayMismatchError when a
    checkpoint is restored; `difference` asks beforehand.

    Raises EnvironmentFault for one that cannot be made, ValueError for one with other actions or
    observations than those supported.
    """

    frames_per_step = 1

    def __init__(
        self,
        recipe: Recipe | str,
        num_envs: int,
        *,
        seed: int,
        reseed_every_frames: int = 2_500_000,
    ) -> None:
        self.recipe = Recipe(recipe, {}) if isinstance(recipe, str) else recipe
        game = self.recipe.game
        super().__init__(
            "gymnasium",
            game,
            num_envs,
            seed=seed,
            reseed_every_frames=reseed_every_frames,
            rules=self.recipe.identity(),
            engine=f"gymnasium {gymnasium.__version__}",
        )
        self._envs: list[Environment | None] = [None] * num_envs  # made by `_reset`
        self.watchdog = Watchdog(lambda: game)
        weakref.finalize(self, self.watchdog.stop)
        try:
            example = Environment(self.recipe, 0, self.watchdog)
        except ValueError as error:
            raise ValueError(f"{game} {error}") from None
        example.close()
        self.num_actions = example.num_actions
        self.observations = example.observations
        self.observation = self.observations.text
        self.frame_shape = self.observations.frame_shape
        self.frame_dtype = self.observations.frame_dtype
        self.stack = self.observations.stack
        self._now = self._blank()
        self._pending: tuple[np.ndarray, np.ndarray] | None = None  # actions, active

    def difference(self) -> str | None:
        return find_difference(self.recipe, environment_seed(self._seed, 0, 0))

    def _reset(self, mask: np.ndarray, seeds: list[int]) -> RawStep:
        now = self._blank()
        now.frames[:] = self._now.frames
        for j, seed in zip(np.flatnonzero(mask).tolist(), seeds, strict=True):
            # A new object: a seed does not reset what an environment keeps across games.
            if (old := self._envs[j]) is not None:
                old.close()
            self._envs[j] = env = self._copy(j)
            now.frames[j] = env.frame(env.reset(seed))
            # Otherwise its next step would reset it once more.
            self._now.terminated[j] = self._now.truncated[j] = False
        self._now.frames[:] = now.frames
        return now

    def _copy(self, j: int) -> Environment:
        name = f"environment {j} of {self.recipe.game}"
        try:
            env = Environment(self.recipe, j, self.watchdog)
        except ValueError as error:
            raise EnvironmentFault(f"{name} {error}") from None
        made, text = env.num_actions, env.observations.text
        if (made, text) != (self.num_actions, self.observation):
            raise EnvironmentFault(
                f"{name} has {made} actions and observes {text}; the first copy had "
                f"{self.num_actions} and {self.observation}"
            )
        return env

    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        self._pending = actions, active

    def _collect(self) -> RawStep:
        assert self._pending is not None
        actions, active = self._pending
        before, now = self._now, self._blank()
        for j in np.flatnonzero(active).tolist():
            env = self._envs[j]
            assert env is not None
            if before.terminated[j] or before.truncated[j]:
                now.frames[j] = env.frame(env.reset())
                continue
            observation, now.rewards[j], now.terminated[j], now.truncated[j] = env.step(
                int(actions[j])
            )
            now.frames[j] = env.frame(observation)
        self._now = now
        return RawStep(*(array.copy() for array in now))

    def _close(self) -> None:
        for env in filter(None, self._envs):
            env.close()
        self.watchdog.stop()
