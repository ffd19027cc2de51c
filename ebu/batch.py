"""Transitions of a replay memory, gathered on the device."""

from functools import cached_property

from torch import Tensor

# Columns of a slot besides its frame, float32 each: every action is exact in float32.
ACTION, REWARD, TERMINATED, PROBABILITY = range(4)


class Batch:
    """Transitions of a replay memory, each part gathered on the device when it is asked for.

    B stands for any number of axes.

    | part | shape, dtype |
    | --- | --- |
    | states, next_states | (B, stack, *frame_shape) of the replay's dtype |
    | actions | (B,) int64 |
    | rewards | (B,) float32, raw or clipped to [-1, 1] as `EpisodicReplay.batch` was told |
    | terminated | (B,) bool: the value ends with the transition |
    | probabilities | (B,) float32: of the actions, when they were chosen |
    """

    def __init__(
        self, frames: Tensor, slots: Tensor, located: Tensor, clip_rewards: bool = False
    ) -> None:
        self._frames = frames
        self._slots = slots
        self._located = located
        self._clip_rewards = clip_rewards

    @cached_property
    def states(self) -> Tensor:
        return self._stacks(self._located[..., 1:-1])

    @cached_property
    def next_states(self) -> Tensor:
        return self._stacks(self._located[..., 2:])

    def at(self, located: Tensor) -> "Batch":
        """Other transitions of the same memory, at these places."""
        return Batch(self._frames, self._slots, located, self._clip_rewards)

    def _stacks(self, rows: Tensor) -> Tensor:
        gathered = self._frames.index_select(0, rows.reshape(-1))
        return gathered.view(*rows.shape, *self._frames.shape[1:])

    @cached_property
    def _columns(self) -> Tensor:
        rows = self._located[..., 0]
        return self._slots.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)

    @property
    def actions(self) -> Tensor:
        return self._columns[..., ACTION].long()

    @property
    def rewards(self) -> Tensor:
        rewards = self._columns[..., REWARD]
        return rewards.clamp(-1, 1) if self._clip_rewards else rewards

    @property
    def terminated(self) -> Tensor:
        return self._columns[..., TERMINATED] != 0

    @property
    def probabilities(self) -> Tensor:
        return self._columns[..., PROBABILITY]
