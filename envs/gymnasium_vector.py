"""GymnasiumVector: N copies of any Gymnasium environment with discrete actions."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from envs.vector import JournaledVector, Outcome, check_at_least

FRAME_SIDE = 84


class GymnasiumVector(JournaledVector):
    """N copies of a registered Gymnasium environment, stepped one after the other.

    uint8 images of shape (H, W), (H, W, 1) or (H, W, 3) become grey 84×84 frames to be stacked by
    four; any other Box becomes a float32 vector. Rewards are raw. Lives are not known here.

    To continue a run, an environment must be a function of its seed and its actions: it draws from
    its own `np_random` and from nothing else. One that does not is found out when a checkpoint is
    restored (ReplayMismatchError).

    Raises ValueError for an environment with other actions or observations.
    """

    frames_per_step = 1

    def __init__(
        self, env_id: str, num_envs: int, *, seed: int, reseed_every_frames: int = 2_500_000
    ) -> None:
        check_at_least(num_envs, 1, "num_envs")
        check_at_least(seed, 0, "seed")
        check_at_least(reseed_every_frames, 1, "reseed_every_frames")
        self._env_id = env_id
        self._envs: list[gymnasium.Env[Any, Any] | None] = [None] * num_envs  # made by `_reset`
        example: gymnasium.Env[Any, Any] = gymnasium.make(env_id)
        actions, observations = example.action_space, example.observation_space
        example.close()
        if not isinstance(actions, spaces.Discrete) or not isinstance(observations, spaces.Box):
            raise ValueError(
                f"{env_id} has actions {_shortened(actions)} and observations "
                f"{_shortened(observations)}; supported are Discrete actions with image or vector "
                "(Box) observations"
            )
        self._first_action = int(actions.start)
        self._is_image = _is_image(observations)
        self.frame_shape: tuple[int, ...]
        self.frame_dtype: np.dtype[Any]
        if self._is_image:
            self.frame_shape, self.frame_dtype = (FRAME_SIDE, FRAME_SIDE), np.dtype(np.uint8)
            self.stack = 4
        else:
            size = int(np.prod(observations.shape))
            self.frame_shape, self.frame_dtype = (size,), np.dtype(np.float32)
            self.stack = 1
        super().__init__(
            num_envs=num_envs,
            num_actions=int(actions.n),
            seed=int(seed),
            reseed_after_steps=-(-reseed_every_frames // num_envs),
            identity={
                "kind": "gymnasium",
                "game": env_id,
                "num_envs": num_envs,
                "seed": int(seed),
                "reseed_every_frames": reseed_every_frames,
            },
            engine=f"gymnasium {gymnasium.__version__}",
        )
        self._now = self._blank()
        self._chosen: tuple[np.ndarray, np.ndarray] | None = None

    def _reset(self, mask: np.ndarray, seeds: list[int]) -> Outcome:
        now = self._blank()
        now.frames[:] = self._now.frames
        for j, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            # A new copy: what an environment keeps across resets is not in its seed.
            if (old := self._envs[j]) is not None:
                old.close()
            self._envs[j] = env = gymnasium.make(self._env_id)
            now.frames[j] = self._frame(env.reset(seed=seed)[0])
            # Its next step must not take it for one whose game has ended.
            self._now.terminated[j] = self._now.truncated[j] = False
        self._now.frames[:] = now.frames
        return now

    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        self._chosen = actions, active

    def _collect(self) -> Outcome:
        assert self._chosen is not None
        actions, active = self._chosen
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

    def _blank(self) -> Outcome:
        return Outcome(
            frames=np.zeros((self.num_envs, *self.frame_shape), dtype=self.frame_dtype),
            rewards=np.zeros(self.num_envs, dtype=np.float32),
            terminated=np.zeros(self.num_envs, dtype=bool),
            truncated=np.zeros(self.num_envs, dtype=bool),
            lives=np.zeros(self.num_envs, dtype=np.int64),
        )

    def _frame(self, observation: Any) -> np.ndarray:
        if not self._is_image:
            return np.asarray(observation, dtype=np.float32).reshape(-1)
        return grey_frame(np.asarray(observation))


def _is_image(space: spaces.Box) -> bool:
    shape = space.shape
    return space.dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def _shortened(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."


def grey_frame(image: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 → (84, 84) uint8: luma, then the mean of each area."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.shape == (FRAME_SIDE, FRAME_SIDE):
        return image
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    return np.asarray(grey.resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.BOX))
