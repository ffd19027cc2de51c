"""A replay memory of whole episodes in which every frame is stored once."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebu.batch import ACTION, PROBABILITY, REWARD, TERMINATED, Batch
from ebu.errors import EbuError, UsageError
from ebu.memory import refuse_oversized_replay, unfilled
from ebu.replay_checks import check_loaded
from ebu.replay_files import read_frames, write_frames
from ebu.segments import Segment, SegmentTable
from ebu.staging import Staging
from ebu.state_checks import check_state, require

_DEVICE_BYTES_PER_SLOT = 4 * 4
# A byte on the host says how many earlier frames a slot's state holds (its context), and with
# this bit set that a transition starts there.
_TRANSITION = np.uint8(128)
_CONTEXT = np.uint8(127)
_HOST_BYTES_PER_SLOT = 1 + SegmentTable.BYTES_PER_SLOT


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
        if min(num_streams, stack, *frame_shape) < 1 or stack > 127:
            raise ValueError(
                f"num_streams {num_streams}, stack {stack} (at most 127) and frame_shape "
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
        # Row slot · N + stream; the last row stays zero: it stands for frames before a game's
        # first. The ring is not filled: pages are used as play reaches them.
        self._frames = unfilled((ring * streams + 1, *self.frame_shape), frame_dtype, device)
        self._frames[-1] = 0
        self._zero_row = ring * streams
        self._slots = torch.zeros((ring * streams, 4), dtype=torch.float32, device=device)
        self._staging = Staging(device)

        self._starts = np.zeros((ring, streams), np.uint8)
        self._table = SegmentTable(ring, streams)
        self._num_steps = 0
        self._num_transitions = 0
        self._cuts = 0
        # Step of the first transition of each stream's segment in progress.
        self._open_start = np.zeros(streams, np.int64)
        # Of the frames in a window, those of a state and the next one: how many steps back they
        # are, and for each context which of them were before the game.
        back = np.arange(stack - 1, -2, -1)
        self._offsets = -streams * back
        self._before_the_game = back > np.arange(stack)[:, None]
        self._ages = np.arange(stack)
        self._newest_columns = np.empty((streams, 4), np.float32)

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
    def num_places(self) -> int:
        """Places for transitions, each used again when the ring comes round."""
        return self._zero_row

    @property
    def num_segments(self) -> int:
        return len(self._table)

    @property
    def num_segment_transitions(self) -> int:
        """Transitions in stored segments."""
        return self._table.transitions()

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
        self._staging.upload(frames, out=self._frames[slot * streams : (slot + 1) * streams])
        if step == 0:
            self._starts[slot] = 0
            return
        previous = (step - 1) % ring
        before, context = self._starts[previous], self._starts[slot]
        np.minimum(before + np.uint8(1), np.uint8(self.stack - 1), out=context)
        context[started] = 0
        played = ~started
        before |= played * _TRANSITION
        self._num_transitions += int(np.count_nonzero(played))
        columns = self._newest_columns
        columns[:, ACTION] = actions
        columns[:, REWARD] = rewards
        columns[:, TERMINATED] = terminated
        columns[:, PROBABILITY] = probabilities
        rows = slice(previous * streams, (previous + 1) * streams)
        self._staging.upload(columns, out=self._slots[rows])
        self._close_segments(step, terminated, truncated, started)

    def _forget(self, step: int) -> None:
        """Drop what needs the frames of this step, which are about to be overwritten."""
        slots = (step + self._ages) % self.ring_length
        starts = self._starts.take(slots, axis=0)
        expiring = (starts & _CONTEXT) == self._ages[:, None]
        self._num_transitions -= int(np.count_nonzero(expiring & (starts >= _TRANSITION)))
        expiring &= self._table.starting_at(slots)
        if expiring.any():
            for k, stream in np.argwhere(expiring).tolist():
                self._table.remove(int(slots[k]), stream)

    def _close_segments(
        self, step: int, terminated: np.ndarray, truncated: np.ndarray, started: np.ndarray
    ) -> None:
        changed = self._open_start <= step - self._segment_limit
        changed |= terminated
        changed |= truncated
        changed |= started
        for stream in changed.nonzero()[0].tolist():
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
        steps, streams = self.draw_minibatches(rng, 1, count)
        return steps[0], streams[0]

    def draw_minibatches(
        self, rng: np.random.Generator, count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `count` calls of `draw_transitions` give, stacked: (count, size) int64 each."""
        if not self._num_transitions:
            raise ValueError("no transition is stored yet")
        before = rng.bit_generator.state
        drawn, stored = self._candidates(rng, count, size)
        stored &= stored.cumsum(axis=1) <= size
        if np.count_nonzero(stored) == count * size:
            drawn = drawn[stored]
        else:
            rng.bit_generator.state = before
            drawn = np.concatenate([self._draw_in_rounds(rng, size) for _ in range(count)])
        ages, streams = np.divmod(drawn.reshape(count, size), self.num_streams)
        return ages + self._oldest, streams

    def _draw_in_rounds(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw until `size` candidates, (size,) int64, turned out to be stored."""
        rounds, missing = [], size
        while missing > 0:
            drawn, stored = self._candidates(rng, 1, missing)
            rounds.append(drawn[stored][:missing])
            missing -= len(rounds[-1])
        return np.concatenate(rounds)

    def _candidates(
        self, rng: np.random.Generator, count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transitions as age · N + stream, some more than (count, size), and which are stored."""
        oldest, streams = self._oldest, self.num_streams
        candidates = (self._num_steps - 1 - oldest) * streams
        drawn = rng.integers(candidates, size=(count, size + size // 8 + 4))
        starts = self._starts.take((drawn + oldest * streams) % self._zero_row)
        stored = starts >= _TRANSITION
        stored &= drawn // streams >= (starts & _CONTEXT)
        return drawn, stored

    def segment_starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first steps, (num_segments,) int64 each, of all stored segments."""
        return self._table.streams_and_starts()

    def segment(self, index: int) -> Segment:
        """The stored segment at this index of `segment_starts`."""
        return self._table[index]

    def places(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """The places (B,) int64 of transitions, in [0, num_places)."""
        places: np.ndarray = steps % self.ring_length * self.num_streams + streams
        return places

    def newest_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps and streams, (B,) int64 each, of the newest transitions at these places."""
        slots, streams = np.divmod(places, self.num_streams)
        newest = self._num_steps - 1
        return newest - (newest - slots) % self.ring_length, streams

    def changed_since(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Transitions that can be drawn, or no longer, other than before this step was appended.

        Those of the steps from `step` on, and the oldest, whose states may have lost frames; the
        newest step leads nowhere yet. Returns places, steps and whether each is stored, (B,).
        """
        newest, oldest = self._num_steps - 1, self._oldest
        aging = np.arange(oldest, min(oldest + self.stack, newest))
        steps = np.concatenate((aging, np.arange(max(oldest, step), newest + 1)))
        steps = steps.repeat(self.num_streams)
        streams = np.arange(len(steps)) % self.num_streams
        return self.places(steps, streams), steps, self.stored(steps, streams)

    def is_stored(self, stream: int, step: int) -> bool:
        """Whether the transition, with its whole state and next state, can be gathered."""
        if not (0 <= stream < self.num_streams and self._oldest <= step < self._num_steps - 1):
            return False
        start = self._starts[step % self.ring_length, stream]
        return bool(start >= _TRANSITION and step - int(start & _CONTEXT) >= self._oldest)

    def stored(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """`is_stored` of many: steps, streams (B,) int64 → (B,) bool."""
        return self._look_up(steps, streams)[2]

    def locate(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """Where stored transitions lie, on the host: (B, 1 + stack + 1) int64.

        The row of the transition, then those of the frames of its window: the state's, oldest
        first, and the next one. steps, streams: (B,) int64; IndexError if one is not stored.
        """
        located = np.empty((len(steps), self.stack + 2), np.int64)
        rows, context, stored = self._look_up(steps, streams)
        if not stored.all():
            raise IndexError("a transition was asked for that is not stored, or not any more")
        located[:, 0] = rows
        self._window(rows, context, out=located[:, 1:])
        return located

    def _look_up(
        self, steps: np.ndarray, streams: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of transitions, their contexts, and whether they are stored."""
        ages = steps - self._oldest
        rows = self.places(steps, streams)
        starts = self._starts.take(rows, mode="wrap")
        context = starts & _CONTEXT
        stored = (starts >= _TRANSITION) & (ages >= context)
        # Read without a sign, negative numbers are too large as well.
        stored &= ages.view(np.uint64) < self._num_steps - 1 - self._oldest
        stored &= streams.view(np.uint64) < self.num_streams
        return rows, context, stored

    def neighbours(
        self, steps: np.ndarray, streams: np.ndarray, *, before: int, after: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The transitions around stored ones, in the same games.

        steps, streams: (B,) int64. Returns steps (B, before + 1 + after) int64, oldest first, and
        whether each is connected to the one in the middle by stored transitions of the game (a lost
        life does not part them); where it is not, its step is that of the middle.
        """
        around = steps[:, None] + np.arange(-before, after + 1)
        _, _, joined = self._look_up(around, np.broadcast_to(streams[:, None], around.shape))
        for side in (joined[:, before:], joined[:, before::-1]):
            np.logical_and.accumulate(side, axis=1, out=side)
        return np.where(joined, around, steps[:, None]), joined

    def batch(self, located: Tensor, *, clip_rewards: bool = False) -> Batch:
        """The transitions that `locate` found, (B, 1 + stack + 1) int64 on the device."""
        return Batch(self._frames, self._slots, located, clip_rewards)

    def read(self, steps: np.ndarray, streams: np.ndarray) -> Batch:
        """Stored transitions by their steps and streams, (B,) int64; IndexError for others."""
        return self.batch(self._staging.upload(self.locate(steps, streams)))

    def newest_states(self) -> Tensor:
        """The stacks that the environments show now: (N, stack, *frame_shape), on the device."""
        slot = (self._num_steps - 1) % self.ring_length
        rows = np.arange(slot * self.num_streams, (slot + 1) * self.num_streams)
        window = np.empty((self.num_streams, self.stack + 1), np.int64)
        self._window(rows, self._starts[slot] & _CONTEXT, out=window)
        rows = window[:, :-1].reshape(-1)
        gathered = self._frames.index_select(0, self._staging.upload(rows))
        return gathered.view(self.num_streams, self.stack, *self.frame_shape)

    def _window(self, rows: np.ndarray, context: np.ndarray, *, out: np.ndarray) -> None:
        """Rows of the frames around these rows; the zero row for what was before a game."""
        np.add(rows[:, None], self._offsets, out=out)
        out %= self._zero_row
        np.copyto(out, self._zero_row, where=self._before_the_game.take(context, axis=0))

    def statistics(self) -> dict[str, float]:
        """What the logs show.

        `transitions` can be drawn one by one, `segment_transitions` lie in stored segments;
        `fill` is the share of the ring in use, `bytes` the size of the full memory, `cuts`
        counts the segments that were cut because they grew too long.
        """
        return {
            "segments": float(len(self._table)),
            "transitions": float(self._num_transitions),
            "segment_transitions": float(self.num_segment_transitions),
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
            "slots": self._slots.view(*shape, -1),
            "starts": torch.from_numpy(self._starts),
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

    def load_state_dict(self, state: dict[str, Any], num_actions: int) -> None:
        """Restore all but the frames, which `read_frames` brings; EbuError if it does not fit.

        num_actions: all stored actions are below it.
        """
        check_state(state, {"construction": {}}, path="replay/")
        for key, value in self._construction().items():
            if state["construction"][key] != value:
                raise EbuError(
                    f"the saved replay has {key} {state['construction'][key]}, this one {value}: "
                    "continue with the settings it was saved with"
                )
        like = {name: value for name, value in self.state_dict().items() if name != "segments"}
        check_state(state, {**like, "construction": {}}, longer=self._columns(), path="replay/")
        self._num_steps = state["num_steps"]
        self._num_transitions = state["num_transitions"]
        self._cuts = state["cuts"]
        self._open_start[:] = state["open_start"]
        slots = self._stored_slots()
        for name, column in self._columns().items():
            require(
                len(state["columns"][name]) == len(slots),
                f"replay/columns/{name} has {len(state['columns'][name])} rows, not {len(slots)}",
            )
            column.zero_()
            column[slots] = torch.as_tensor(state["columns"][name], device=column.device)
        self._table.load_state_dict(state["segments"])
        starts = self._starts[slots.numpy()]
        columns = self._slots.view(self.ring_length, self.num_streams, -1)[slots]
        check_loaded(
            columns.numpy(force=True),
            oldest=self._oldest,
            contexts=starts & _CONTEXT,
            transitions=starts >= _TRANSITION,
            num_transitions=self._num_transitions,
            num_actions=num_actions,
            stack=self.stack,
            open_start=self._open_start,
            segment_limit=self._segment_limit,
            segments=self._table.state_dict(),
        )

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
