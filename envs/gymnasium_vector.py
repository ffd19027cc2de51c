"""N copies of any Gymnasium environment with discrete actions."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from envs.vector import FRAME_SIDE, Outcome, VectorEnvironment


class GymnasiumVector(VectorEnvironment):
    """N copies of a registered Gymnasium environment, stepped one after the other.

    uint8 images of shape (H, W), (H, W, 1) or (H, W, 3) become grey 84×84 frames in stacks of
    four; any other Box becomes a float32 vector. Rewards are raw, and no life is ever lost.

    To resume a run, an environment must be a function of its seed and its actions: it draws random
    numbers from its own `np_random` alone. One that does not raises ReplayMismatchError when a
    checkpoint is restored.

    Raises ValueError for an environment with other actions or observations.
    """

    frames_per_step = 1

    def __init__(
        self, env_id: str, num_envs: int, *, seed: int, reseed_every_frames: int = 2_500_000
    ) -> None:
        super().__init__(
            "gymnasium",
            env_id,
            num_envs,
            seed=seed,
            reseed_every_frames=reseed_every_frames,
            rules={},
            engine=f"gymnasium {gymnasium.__version__}",
        )
        self._env_id = env_id
        self._envs: list[gymnasium.Env[Any, Any] | None] = [None] * num_envs  # made by `_reset`
        example: gymnasium.Env[Any, Any] = gymnasium.make(env_id)
        actions, observations = example.action_space, example.observation_space
        example.close()
        if not isinstance(actions, spaces.Discrete) or not isinstance(observations, spaces.Box):
            raise ValueError(
                f"{env_id} has actions {_abbreviate(actions)} and observations "
                f"{_abbreviate(observations)}; supported are Discrete actions with image or vector "
                "(Box) observations"
            )
        if not 1 <= actions.n <= 256:
            raise ValueError(f"{env_id} has {actions.n} actions; 1 to 256 are supported")
        self.num_actions = int(actions.n)
        self._first_action = int(actions.start)
        self._is_image = _is_image(observations)
        if self._is_image:
            self.frame_shape, self.frame_dtype = (FRAME_SIDE, FRAME_SIDE), np.dtype(np.uint8)
            self.stack = 4
        else:
            size = int(np.prod(observations.shape))
            self.frame_shape, self.frame_dtype = (size,), np.dtype(np.float32)
            self.stack = 1
        self._now = self._blank()
        self._pending: tuple[np.ndarray, np.ndarray] | None = None  # actions, active

    def _reset(self, mask: np.ndarray, seeds: list[int]) -> Outcome:
        now = self._blank()
        now.frames[:] = self._now.frames
        for j, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            # A new object: a seed does not reset what an environment keeps across games.
            if (old := self._envs[j]) is not None:
                old.close()
            self._envs[j] = env = gymnasium.make(self._env_id)
            now.frames[j] = self._frame(env.reset(seed=seed)[0])
            # Otherwise its next step would reset it once more.
            self._now.terminated[j] = self._now.truncated[j] = False
        self._now.frames[:] = now.frames
        return now

    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        self._pending = actions, active

    def _collect(self) -> Outcome:
        assert self._pending is not None
        actions, active = self._pending
        before, now = self._now, self._blank()
        for j in np.flatnonzero(active):
            env = self._envs[j]
            assert env is not None
            if before.terminated[j] or before.truncated[j]:
                now.frames[j] = self._frame(env.reset()[0])
                continue
            observation, reward, terminated, truncated, _ = env.step(
                self._first_action + int(actions[j])
            )
            now.frames[j] = self._frame(observation)
            now.rewards[j] = reward
            now.terminated[j] = terminated
            now.truncated[j] = truncated and not terminated
        self._now = now
        return Outcome(*(array.copy() for array in now))

    def _close(self) -> None:
        for env in filter(None, self._envs):
            env.close()

    def _frame(self, observation: Any) -> np.ndarray:
        if not self._is_image:
            return np.asarray(observation, dtype=np.float32).reshape(-1)
        return grey_frame(np.asarray(observation))


def _is_image(space: spaces.Box) -> bool:
    shape = space.shape
    return space.dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def _abbreviate(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."


def grey_frame(image: np.ndarray) -> np.ndarray:
    """Convert (H, W), (H, W, 1) or (H, W, 3) uint8 to luma, averaged by area to (84, 84) uint8."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.shape == (FRAME_SIDE, FRAME_SIDE):
        return image
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    return np.asarray(grey.resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.BOX))
