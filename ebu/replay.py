"""A replay memory of whole episodes in which every frame is stored once."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebu.batch import ACTION, PROBABILITY, REWARD, TERMINATED, Batch
from ebu.errors import EbuError, UsageError
from ebu.host_memory import refuse_oversized_replay, unfilled
from ebu.replay_checks import check_loaded
from ebu.replay_files import read_frames, write_frames
from ebu.segments import Segment, SegmentTable
from ebu.staging import Staging
from ebu.state_checks import check_state, require
from ebu.transitions import TransitionTable

_DEVICE_BYTES_PER_SLOT = 4 * 4
_HOST_BYTES_PER_SLOT = TransitionTable.BYTES_PER_SLOT + SegmentTable.BYTES_PER_SLOT


class EpisodicReplay:
    """One ring of frames for each of N environment streams, with tables of what it holds.

    | attribute | meaning |
    | --- | --- |
    | transitions | those whose frames are stored: draws them, and locates them for `batch` |
    | segments | those that have ended and are stored as a whole |

    All streams advance together: an append writes one slot of each. Step t (counted from 0,
    the frames of the reset) lies in slot t mod L of the ring, L = ⌈capacity / N⌉. The
    transition at step t of a stream leads from the frame at t to the frame at t + 1; a
    game's last frame has none. Frames, actions, rewards, ends and probabilities lie on the
    device; what a draw needs lies on the host, so that drawing never waits for the device.

    A state is the newest `stack` frames of its game, oldest first, with zeros before the
    game's first frame; it does reach back over a lost life, as in play. The number of
    earlier frames it holds is its context.

    A segment enters its table when it ends: terminated (game over, or a lost life under
    the paper's protocol), truncated, or cut because it reached a quarter of its stream's
    ring. A cut is a truncation whose bootstrap frame is the next segment's first frame. It
    leaves the table in the step in which the oldest frame of its first context is
    overwritten, so all frames of a stored segment are intact at any time.

    | argument | meaning |
    | --- | --- |
    | capacity | transitions of all streams together |
    | num_streams | N, environments that are appended together |
    | frame_dtype | torch.uint8 or torch.float32 |
    | stack | frames of a state, 1 to 127 |

    Raises UsageError if the memory does not fit on the device, or cannot hold a segment, ValueError
    for other values that no memory has.
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
        self._bytes = self.required_bytes(capacity, num_streams, frame_shape, frame_dtype)
        refuse_oversized_replay(capacity, self._bytes, smallest, device)

        ring, streams = self.ring_length, num_streams
        self._segment_limit = max(1, min(ring // 4, ring - stack))
        # Row slot · N + stream; the last row stays zero: it stands for frames before a game's
        # first. The ring is not filled: pages are used as play reaches them.
        self._frames = unfilled((ring * streams + 1, *self.frame_shape), frame_dtype, device)
        self._frames[-1] = 0
        self._slots = torch.zeros((ring * streams, 4), dtype=torch.float32, device=device)
        self._staging = Staging(device)

        self.transitions = TransitionTable(ring, streams, stack)
        self.segments = SegmentTable(ring, streams)
        self._cuts = 0
        # Step of the first transition of each stream's segment in progress.
        self._open_start = np.zeros(streams, np.int64)
        self._newest_columns = np.empty((streams, 4), np.float32)

    @staticmethod
    def required_bytes(
        capacity: int,
        num_streams: int,
        frame_shape: tuple[int, ...],
        frame_dtype: torch.dtype,
    ) -> int:
        """Bytes of a full memory, host and device together."""
        slots = math.ceil(capacity / num_streams) * num_streams
        frame = math.prod(frame_shape) * frame_dtype.itemsize
        return slots * (frame + _DEVICE_BYTES_PER_SLOT + _HOST_BYTES_PER_SLOT) + frame

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
        step, ring, streams = self.transitions.num_steps, self.ring_length, self.num_streams
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

        if step >= ring:
            self.segments.remove(*self.transitions.expire())
        self.transitions.append(started)
        slot = step % ring
        self._staging.upload(frames, out=self._frames[slot * streams : (slot + 1) * streams])
        if step == 0:
            return
        columns = self._newest_columns
        columns[:, ACTION] = actions
        columns[:, REWARD] = rewards
        columns[:, TERMINATED] = terminated
        columns[:, PROBABILITY] = probabilities
        previous = (step - 1) % ring
        rows = slice(previous * streams, (previous + 1) * streams)
        self._staging.upload(columns, out=self._slots[rows])
        self._close_segments(step, terminated, truncated, started)

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
                self.segments.add(Segment(stream, begin, step - begin, end))
                self._cuts += not (end or truncated[stream])
            elif step - 1 > begin:
                # A game that was left without an end, by a reset from outside.
                self.segments.add(Segment(stream, begin, step - 1 - begin, False))

    def batch(self, located: Tensor, *, clip_rewards: bool = False) -> Batch:
        """The transitions that `locate` found, (B, 1 + stack + 1) int64 on the device."""
        return Batch(self._frames, self._slots, located, clip_rewards)

    def read(self, steps: np.ndarray, streams: np.ndarray) -> Batch:
        """Stored transitions by their steps and streams, (B,) int64; IndexError for others."""
        return self.batch(self._staging.upload(self.transitions.locate(steps, streams)))

    def newest_states(self) -> Tensor:
        """The stacks that the environments show now: (N, stack, *frame_shape), on the device."""
        rows = self.transitions.locate_newest_states().reshape(-1)
        gathered = self._frames.index_select(0, self._staging.upload(rows))
        return gathered.view(self.num_streams, self.stack, *self.frame_shape)

    def statistics(self) -> dict[str, float]:
        """What the logs show.

        `transitions` can be drawn one by one, `segment_transitions` lie in stored segments;
        `fill` is the share of the ring in use, `bytes` the size of the full memory, `cuts`
        counts the segments that were cut because they grew too long.
        """
        return {
            "segments": float(len(self.segments)),
            "transitions": float(len(self.transitions)),
            "segment_transitions": float(self.segments.transitions()),
            "fill": len(self.transitions.slots) / self.ring_length,
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

    def _ring_of_slots(self) -> Tensor:
        """(L, N, 4), a view."""
        return self._slots.view(self.ring_length, self.num_streams, -1)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the frames, copied; rows oldest step first."""
        return {
            "construction": self._construction(),
            "num_steps": self.transitions.num_steps,
            "num_transitions": len(self.transitions),
            "cuts": self._cuts,
            "open_start": self._open_start.copy(),
            "columns": {
                "slots": self._ring_of_slots()[self.transitions.slots].cpu(),
                "starts": torch.from_numpy(self.transitions.starts()),
            },
            "segments": self.segments.state_dict(),
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
        like["construction"] = {}
        check_state(state, like, longer=like["columns"], path="replay/")
        self._cuts = state["cuts"]
        self._open_start[:] = state["open_start"]
        columns = {name: np.asarray(column) for name, column in state["columns"].items()}
        self.transitions.load(state["num_steps"], state["num_transitions"], columns["starts"])
        self.segments.load_state_dict(state["segments"])
        slots = self.transitions.slots
        require(
            len(columns["slots"]) == len(slots),
            f"replay/columns/slots has {len(columns['slots'])} rows, not {len(slots)}",
        )
        self._slots.zero_()
        self._ring_of_slots()[slots] = torch.from_numpy(columns["slots"]).to(self.device)
        contexts, starting = self.transitions.entries()
        check_loaded(
            columns["slots"],
            oldest=self.transitions.oldest,
            contexts=contexts,
            transitions=starting,
            num_transitions=len(self.transitions),
            num_actions=num_actions,
            stack=self.stack,
            open_start=self._open_start,
            segment_limit=self._segment_limit,
            segments=self.segments.state_dict(),
        )

    def write_frames(self, directory: Path) -> None:
        """Write all stored frames, compressed, into new files of this directory."""
        write_frames(directory, self._ring(), self.transitions.oldest, self.transitions.num_steps)

    def read_frames(self, directory: Path) -> None:
        """Read what `write_frames` wrote, after `load_state_dict`.

        EbuError in one line if files are missing, short, altered, or of another state.
        """
        read_frames(directory, self._ring(), self.transitions.oldest, self.transitions.num_steps)

    def _ring(self) -> Tensor:
        """(L, N, *frame_shape), a view."""
        return self._frames[:-1].view(self.ring_length, self.num_streams, *self.frame_shape)
