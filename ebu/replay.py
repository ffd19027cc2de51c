"""A replay memory of whole episodes in which every frame is stored once."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebu.errors import EbuError, UsageError
from ebu.memory import refuse_oversized_replay
from ebu.replay_files import read_frames, write_frames
from ebu.segments import Segment, SegmentTable

# float32 reward, int32 action, bool terminated, float32 probability
_DEVICE_BYTES_PER_SLOT = 4 + 4 + 1 + 4
# uint8 context, bool has_transition, the table of segments
_HOST_BYTES_PER_SLOT = 1 + 1 + SegmentTable.BYTES_PER_SLOT


class EpisodicReplay:
    """One ring of frames for each of N environment streams, and a table of segments.

    All streams advance together: an append writes one slot of each. Step t (counted from 0,
    the frames of the reset) lies in slot t mod L of the ring, L = ⌈capacity / N⌉. The
    transition at step t of a stream leads from the frame at t to the frame at t + 1; a
    game's last frame has none. Frames, actions, rewards, ends and probabilities lie on the
    device; what a draw needs lies on the host, so that drawing never waits for the device.

    A state is the newest `stack` frames of its game, oldest first, with zeros before the
    game's first frame; it does reach back over a lost life, as in play. The number of
    earlier frames it holds is its context.

    A segment enters the table when it ends: terminated (game over, or a lost life under
    the paper's protocol), truncated, or cut because it reached a quarter of its stream's
    ring. A cut is a truncation whose bootstrap frame is the next segment's first frame. It
    leaves the table in the step in which the oldest frame of its first context is
    overwritten, so all frames of a stored segment are intact at any time.

    Raises UsageError if the memory does not fit on the device, or cannot hold a segment.
    """

    def __init__(
        self,
        *,
        capacity: int,
        num_streams: int,
        frame_shape: tuple[int, ...],
        frame_dtype: torch.dtype,
        stack: int,
        device: torch.device,
    ) -> None:
        if frame_dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"frames are uint8 or float32, not {frame_dtype}")
        if min(num_streams, stack, *frame_shape) < 1 or stack > 255:
            raise ValueError(
                f"num_streams {num_streams}, stack {stack} (at most 255) and frame_shape "
                f"{tuple(frame_shape)} must be positive"
            )
        self.capacity = capacity
        self.num_streams = num_streams
        self.frame_shape = tuple(frame_shape)
        self.frame_dtype = frame_dtype
        self.stack = stack
        self.device = device
        self.ring_length = math.ceil(capacity / num_streams)
        # A cut segment of one transition: its stack, its next frame, and no more.
        smallest = num_streams * stack + 1
        if capacity < smallest:
            raise UsageError(
                f"a replay of {capacity} transitions cannot hold a segment of {num_streams} "
                f"environments: raise --replay-capacity to at least {smallest}"
            )
        self._bytes = self.required_bytes(capacity, num_streams, frame_shape, frame_dtype, stack)
        refuse_oversized_replay(capacity, self._bytes, smallest, device)

        ring, streams = self.ring_length, num_streams
        self._segment_limit = max(1, min(ring // 4, ring - stack))
        # Row slot · N + stream; the row behind the ring stays zero, for what was before a
        # game's first frame. The ring is not filled: pages are used as play reaches them.
        self._frames = torch.empty(
            (ring * streams + 1, *self.frame_shape), dtype=frame_dtype, device=device
        )
        self._frames[-1] = 0
        self._zero_row = ring * streams
        self._actions = torch.zeros(ring * streams, dtype=torch.int32, device=device)
        self._rewards = torch.zeros(ring * streams, dtype=torch.float32, device=device)
        self._terminated = torch.zeros(ring * streams, dtype=torch.bool, device=device)
        self._probabilities = torch.zeros(ring * streams, dtype=torch.float32, device=device)

        self._context = np.zeros((ring, streams), np.uint8)
        self._has_transition = np.zeros((ring, streams), np.bool_)
        self._table = SegmentTable(ring, streams)
        self._num_steps = 0
        self._num_transitions = 0
        self._cuts = 0
        # Step of the first transition of each stream's segment in progress.
        self._open_start = np.zeros(streams, np.int64)
        self._back = np.arange(stack - 1, -1, -1)

    @staticmethod
    def required_bytes(
        capacity: int,
        num_streams: int,
        frame_shape: tuple[int, ...],
        frame_dtype: torch.dtype,
        stack: int,
    ) -> int:
        """Bytes of a full memory, host and device together."""
        slots = math.ceil(capacity / num_streams) * num_streams
        frame = math.prod(frame_shape) * frame_dtype.itemsize
        return slots * (frame + _DEVICE_BYTES_PER_SLOT + _HOST_BYTES_PER_SLOT) + frame

    @property
    def num_segments(self) -> int:
        return len(self._table)

    @property
    def num_steps(self) -> int:
        """The absolute step of the next append."""
        return self._num_steps

    @property
    def num_transitions(self) -> int:
        """Transitions that `draw_transitions` draws from."""
        return self._num_transitions

    @property
    def _oldest(self) -> int:
        """The oldest step whose frames are stored."""
        return max(0, self._num_steps - self.ring_length)

    def append(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        started: np.ndarray,
        probabilities: np.ndarray,
    ) -> None:
        """Store one step of every stream; row j belongs to stream j.

        | argument | shape, dtype | meaning |
        | --- | --- | --- |
        | frames | (N, *frame_shape) frame_dtype | the newest frames |
        | actions | (N,) integer | what was done at the frame before |
        | rewards | (N,) float32 | raw |
        | terminated | (N,) bool | the value ends: game over, or a lost life |
        | truncated | (N,) bool | the segment ends and bootstraps from this frame |
        | started | (N,) bool | first frame of a new game; the rest of the row is ignored |
        | probabilities | (N,) float32 | of the actions, under the behaviour policy |

        After a terminated or truncated row that no `started` row follows, the next segment
        begins at this frame. ValueError on shapes and types that do not fit.
        """
        step, ring, streams = self._num_steps, self.ring_length, self.num_streams
        newest = torch.from_numpy(frames)
        if newest.dtype != self.frame_dtype or newest.shape != (streams, *self.frame_shape):
            raise ValueError(
                f"frames are {tuple(frames.shape)} {frames.dtype}; this memory holds "
                f"{(streams, *self.frame_shape)} {self.frame_dtype}"
            )
        for column in (actions, rewards, terminated, truncated, started, probabilities):
            if column.shape != (streams,):
                raise ValueError(f"a column of shape {column.shape} is not ({streams},)")
        if step == 0 and not started.all():
            raise ValueError("the first append must hold the first frames of games (started)")

        slot = step % ring
        if step >= ring:
            self._forget(step - ring)
        self._num_steps = step + 1
        self._frames[slot * streams : (slot + 1) * streams].copy_(newest)
        if step == 0:
            self._context[slot] = 0
            return
        previous = (step - 1) % ring
        context = np.minimum(self._context[previous] + 1, self.stack - 1)
        context[started] = 0
        self._context[slot] = context
        self._has_transition[previous] = ~started
        self._num_transitions += streams - int(np.count_nonzero(started))
        rows = slice(previous * streams, (previous + 1) * streams)
        self._actions[rows] = torch.from_numpy(actions)
        self._rewards[rows] = torch.from_numpy(rewards)
        self._terminated[rows] = torch.from_numpy(terminated)
        self._probabilities[rows] = torch.from_numpy(probabilities)
        self._close_segments(step, terminated, truncated, started)

    def _forget(self, step: int) -> None:
        """Drop what needs the frames of this step, which are about to be overwritten."""
        ages = np.arange(self.stack)
        slots = (step + ages) % self.ring_length
        expiring = self._context[slots] == ages[:, None]
        self._num_transitions -= int(np.count_nonzero(expiring & self._has_transition[slots]))
        expiring &= self._table.starting_at(slots)
        for k, stream in np.argwhere(expiring).tolist():
            self._table.remove(int(slots[k]), stream)

    def _close_segments(
        self, step: int, terminated: np.ndarray, truncated: np.ndarray, started: np.ndarray
    ) -> None:
        ended = terminated | truncated | (step - self._open_start >= self._segment_limit)
        for stream in np.flatnonzero(ended | started).tolist():
            begin = int(self._open_start[stream])
            self._open_start[stream] = step
            if not started[stream]:
                end = bool(terminated[stream])
                self._table.add(Segment(stream, begin, step - begin, end))
                self._cuts += not (end or truncated[stream])
            elif step - 1 > begin:
                # A game that was left without an end, by a reset from outside.
                self._table.add(Segment(stream, begin, step - 1 - begin, False))

    def draw_segment(self, rng: np.random.Generator) -> Segment:
        """A stored segment, uniformly; ValueError if there is none."""
        if not len(self._table):
            raise ValueError("no segment is stored yet")
        return self._table[int(rng.integers(len(self._table)))]

    def draw_transitions(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps and streams, (count,) int64 each, of transitions drawn uniformly.

        From all whose state and next state are stored, whether their segment is in the
        table, has left it, or is still being played. ValueError if there are none.
        """
        if not self._num_transitions:
            raise ValueError("no transition is stored yet")
        oldest = self._oldest
        slots = (self._num_steps - 1 - oldest) * self.num_streams
        accepted: list[np.ndarray] = []
        missing = count
        while missing > 0:
            drawn = rng.integers(slots, size=missing + missing // 8 + 4)
            steps, streams = np.divmod(drawn, self.num_streams)
            steps += oldest
            slot = steps % self.ring_length
            good = self._has_transition[slot, streams]
            good &= steps - self._context[slot, streams] >= oldest
            accepted.append(np.stack((steps[good], streams[good])))
            missing -= int(np.count_nonzero(good))
        steps, streams = np.concatenate(accepted, axis=1)[:, :count]
        return steps, streams

    def is_stored(self, stream: int, step: int) -> bool:
        """Whether the transition, with its whole state and next state, can be gathered."""
        if not (0 <= stream < self.num_streams and self._oldest <= step < self._num_steps - 1):
            return False
        slot = step % self.ring_length
        context = int(self._context[slot, stream])
        return bool(self._has_transition[slot, stream]) and step - context >= self._oldest

    def states(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        """Stacks in which the actions were chosen: (B, stack, *frame_shape), on the device.

        steps, streams: (B,) int64, of stored transitions; IndexError for others.
        """
        self._rows(steps, streams)
        return self._stacks(steps, streams)

    def next_states(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        """Stacks that the transitions led to, as `states`; a game's last one included."""
        self._rows(steps, streams)
        return self._stacks(steps + 1, streams)

    def actions(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        """(B,) int64."""
        return self._column(self._actions, steps, streams).long()

    def rewards(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        """(B,) float32, raw."""
        return self._column(self._rewards, steps, streams)

    def terminated(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        """(B,) bool: the value does not continue behind the transition."""
        return self._column(self._terminated, steps, streams)

    def probabilities(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        """(B,) float32: of the actions, when they were chosen."""
        return self._column(self._probabilities, steps, streams)

    def _column(self, column: Tensor, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        rows = torch.from_numpy(self._rows(steps, streams)).to(self.device)
        return column.index_select(0, rows)

    def _rows(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """Ring rows of the transitions; IndexError if one of them is not stored."""
        slot = steps % self.ring_length
        oldest_frames = steps - self._context[slot, streams]
        if len(steps) and (
            oldest_frames.min() < self._oldest
            or steps.max() >= self._num_steps - 1
            or streams.min() < 0
            or not self._has_transition[slot, streams].all()
        ):
            raise IndexError("a transition was asked for that is not stored, or not any more")
        rows: np.ndarray = slot * self.num_streams + streams
        return rows

    def _stacks(self, steps: np.ndarray, streams: np.ndarray) -> Tensor:
        context = self._context[steps % self.ring_length, streams]
        rows = (steps[:, None] - self._back) % self.ring_length
        rows *= self.num_streams
        rows += streams[:, None]
        rows[self._back > context[:, None]] = self._zero_row
        index = torch.from_numpy(rows.reshape(-1)).to(self.device)
        gathered = self._frames.index_select(0, index)
        return gathered.view(len(steps), self.stack, *self.frame_shape)

    def statistics(self) -> dict[str, float]:
        """What the logs show.

        `transitions` can be drawn one by one, `segment_transitions` lie in stored segments;
        `fill` is the share of the ring in use, `bytes` the size of the full memory, `cuts`
        counts the segments that were cut because they grew too long.
        """
        return {
            "segments": float(len(self._table)),
            "transitions": float(self._num_transitions),
            "segment_transitions": float(self._table.transitions()),
            "fill": min(self._num_steps, self.ring_length) / self.ring_length,
            "bytes": float(self._bytes),
            "cuts": float(self._cuts),
        }

    def _construction(self) -> dict[str, Any]:
        return {
            "capacity": self.capacity,
            "num_streams": self.num_streams,
            "frame_shape": list(self.frame_shape),
            "frame_dtype": str(self.frame_dtype),
            "stack": self.stack,
        }

    def _stored_slots(self) -> Tensor:
        """Slots in use, oldest step first."""
        return torch.arange(self._oldest, self._num_steps) % self.ring_length

    def _columns(self) -> dict[str, Tensor]:
        shape = (self.ring_length, self.num_streams)
        return {
            "actions": self._actions.view(shape),
            "rewards": self._rewards.view(shape),
            "terminated": self._terminated.view(shape),
            "probabilities": self._probabilities.view(shape),
            "context": torch.from_numpy(self._context),
            "has_transition": torch.from_numpy(self._has_transition),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the frames, copied; rows oldest step first."""
        slots = self._stored_slots()
        return {
            "construction": self._construction(),
            "num_steps": self._num_steps,
            "num_transitions": self._num_transitions,
            "cuts": self._cuts,
            "open_start": self._open_start.copy(),
            "columns": {name: column[slots].cpu() for name, column in self._columns().items()},
            "segments": self._table.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore all but the frames, which `read_frames` brings; EbuError if it does not fit."""
        for key, value in self._construction().items():
            if state["construction"][key] != value:
                raise EbuError(
                    f"the saved replay has {key} {state['construction'][key]}, this one {value}: "
                    "continue with the settings it was saved with"
                )
        self._num_steps = state["num_steps"]
        self._num_transitions = state["num_transitions"]
        self._cuts = state["cuts"]
        self._open_start[:] = state["open_start"]
        slots = self._stored_slots()
        for name, column in self._columns().items():
            column.zero_()
            column[slots] = torch.as_tensor(state["columns"][name], device=column.device)
        self._table.load_state_dict(state["segments"])

    def write_frames(self, directory: Path) -> None:
        """Write all stored frames, compressed, into new files of this directory."""
        write_frames(directory, self._ring(), self._oldest, self._num_steps)

    def read_frames(self, directory: Path) -> None:
        """Read what `write_frames` wrote, after `load_state_dict`.

        EbuError in one line if files are missing, short, altered, or of another state.
        """
        read_frames(directory, self._ring(), self._oldest, self._num_steps)

    def _ring(self) -> Tensor:
        """(L, N, *frame_shape), a view."""
        return self._frames[:-1].view(self.ring_length, self.num_streams, *self.frame_shape)
