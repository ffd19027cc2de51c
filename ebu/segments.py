"""The table of stored segments, on the host."""

from typing import Any, NamedTuple

import numpy as np

from ebu.state_checks import check_range, check_state, require


class Segment(NamedTuple):
    """Consecutive transitions of one stream, up to a lost life, a game's end or a cut.

    | field | meaning |
    | --- | --- |
    | stream | the environment it was played in |
    | start | absolute step of its first transition |
    | length | number of transitions |
    | terminated | its last step ends the value; otherwise it bootstraps |
    """

    stream: int
    start: int
    length: int
    terminated: bool


class SegmentTable:
    """Stored segments in an order that depends only on what was added and removed.

    Reading entry i and adding are O(1); removal moves the last entry into the gap. A ring
    position (start mod ring_length, stream) holds the start of at most one segment.
    """

    BYTES_PER_SLOT = 4 + 8 + 4 + 1 + 4

    def __init__(self, ring_length: int, num_streams: int) -> None:
        slots = ring_length * num_streams
        self._ring_length = ring_length
        self._count = 0
        # Pages of these are used only as far as there are segments.
        self._stream = np.empty(slots, np.int32)
        self._start = np.empty(slots, np.int64)
        self._length = np.empty(slots, np.int32)
        self._terminated = np.empty(slots, np.bool_)
        self._index = np.full((ring_length, num_streams), -1, np.int32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Segment:
        if not 0 <= index < self._count:
            raise IndexError(f"segment {index} of {self._count}")
        return Segment(
            int(self._stream[index]),
            int(self._start[index]),
            int(self._length[index]),
            bool(self._terminated[index]),
        )

    def add(self, segment: Segment) -> None:
        index = self._count
        self._stream[index], self._start[index], self._length[index], self._terminated[index] = (
            segment
        )
        self._index[segment.start % self._ring_length, segment.stream] = index
        self._count += 1

    def remove(self, slots: np.ndarray, expired: np.ndarray) -> None:
        """Remove the segments that start where transitions expire: see `TransitionTable.expire`."""
        starting = self._index.take(slots, axis=0) >= 0
        starting &= expired
        if starting.any():
            for k, stream in np.argwhere(starting).tolist():
                self._remove(int(slots[k]), stream)

    def _remove(self, slot: int, stream: int) -> None:
        index = int(self._index[slot, stream])
        self._index[slot, stream] = -1
        self._count -= 1
        last = self._count
        if index != last:
            for column in (self._stream, self._start, self._length, self._terminated):
                column[index] = column[last]
            moved_slot = int(self._start[index]) % self._ring_length
            self._index[moved_slot, int(self._stream[index])] = index

    def draw(self, rng: np.random.Generator) -> Segment:
        """A stored segment, uniformly; ValueError if there is none."""
        if not self._count:
            raise ValueError("no segment is stored yet")
        return self[int(rng.integers(self._count))]

    def streams_and_starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first steps, (n,) int64 each, in the order of the entries."""
        return self._stream[: self._count].astype(np.int64), self._start[: self._count]

    def transitions(self) -> int:
        """Number of transitions in all stored segments."""
        return int(self._length[: self._count].sum(dtype=np.int64))

    def state_dict(self) -> dict[str, Any]:
        return {
            "stream": self._stream[: self._count].copy(),
            "start": self._start[: self._count].copy(),
            "length": self._length[: self._count].copy(),
            "terminated": self._terminated[: self._count].copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        columns = self.state_dict()
        check_state(state, columns, longer=columns, path="replay/segments/")
        count = len(state["start"])
        require(
            count <= self._index.size and all(len(state[name]) == count for name in columns),
            "replay/segments has columns of other lengths",
        )
        check_range(state["stream"], 0, self._index.shape[1] - 1, "replay/segments/stream")
        self._count = count
        self._stream[:count] = state["stream"]
        self._start[:count] = state["start"]
        self._length[:count] = state["length"]
        self._terminated[:count] = state["terminated"]
        self._index.fill(-1)
        self._index[self._start[:count] % self._ring_length, self._stream[:count]] = np.arange(
            count
        )
