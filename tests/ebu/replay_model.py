"""Random play, and what a replay memory must hold after it, computed the slow way."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ebu.frames import FrameStack
from ebu.replay import EpisodicReplay
from ebu.segments import Segment

CPU = torch.device("cpu")
NUM_ACTIONS = 18


class Row(NamedTuple):
    """One append: the arguments of `EpisodicReplay.append`."""

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    started: np.ndarray
    probabilities: np.ndarray


class Chances(NamedTuple):
    """Probability of each event in each step of each stream."""

    over: float = 0.05
    life_lost: float = 0.05
    truncated: float = 0.02
    left: float = 0.0  # reset from outside, in the middle of a game


def play(
    rng: np.random.Generator,
    num_streams: int,
    frame_shape: tuple[int, ...],
    frame_dtype: torch.dtype,
    chances: Chances,
) -> Iterator[Row]:
    """Rows without end; every frame differs from the others with near certainty."""
    reset = np.ones(num_streams, bool)
    while True:
        over = (rng.random(num_streams) < chances.over) & ~reset
        cut = (rng.random(num_streams) < chances.truncated) & ~reset & ~over
        life = (rng.random(num_streams) < chances.life_lost) & ~reset & ~over & ~cut
        frames = rng.integers(1, 256, size=(num_streams, *frame_shape), dtype=np.uint8)
        yield Row(
            frames if frame_dtype == torch.uint8 else frames.astype(np.float32) / 7,
            rng.integers(NUM_ACTIONS, size=num_streams),
            rng.normal(size=num_streams).astype(np.float32) * ~reset,
            over | life,
            cut,
            reset,
            rng.random(num_streams, dtype=np.float32),
        )
        reset = over | cut | (rng.random(num_streams) < chances.left)


class Model:
    """Everything that was ever appended, and the stacks the agent saw."""

    def __init__(self, replay: EpisodicReplay) -> None:
        self.length = replay.ring_length
        self.stack = replay.stack
        self.num_streams = replay.num_streams
        self.rows: list[Row] = []
        self.seen: list[np.ndarray] = []
        self.frame_stack = FrameStack(
            replay.num_streams, replay.frame_shape, replay.frame_dtype, replay.stack, CPU
        )

    def append(self, row: Row) -> None:
        self.rows.append(row)
        self.seen.append(self.frame_stack.push(row.frames, row.started).numpy().copy())

    def first_frame(self, stream: int, step: int) -> int:
        """Step of the oldest frame in the state at this step."""
        first = step
        while first > step - self.stack + 1 and not self.rows[first].started[stream]:
            first -= 1
        return first

    def is_stored(self, stream: int, step: int) -> bool:
        newest = len(self.rows) - 1
        if not 0 <= step < newest or self.rows[step + 1].started[stream]:
            return False
        return self.first_frame(stream, step) > newest - self.length

    def transitions(self) -> set[tuple[int, int]]:
        """(step, stream) of all drawable transitions."""
        return {
            (step, stream)
            for step in range(max(0, len(self.rows) - self.length - 1), len(self.rows))
            for stream in range(self.num_streams)
            if self.is_stored(stream, step)
        }

    def segments(self) -> set[Segment]:
        """All segments whose frames are still whole, found by walking through every stream."""
        limit = max(1, min(self.length // 4, self.length - self.stack))
        found = set()
        for stream in range(self.num_streams):
            start = 0
            for step, row in enumerate(self.rows):
                if row.started[stream]:
                    if step - 1 > start:
                        found.add(Segment(stream, start, step - 1 - start, False))
                    start = step
                elif row.terminated[stream] or row.truncated[stream] or step - start == limit:
                    end = bool(row.terminated[stream])
                    found.add(Segment(stream, start, step - start, end))
                    start = step
        oldest = len(self.rows) - self.length
        return {s for s in found if self.first_frame(s.stream, s.start) >= oldest}


class Pick:
    """Stands in for a random generator: every draw is the given number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def integers(self, limit: int) -> int:
        assert self.number < limit
        return self.number


def stored_segments(replay: EpisodicReplay) -> list[Segment]:
    """The table, in its order."""
    return [replay.segments.draw(Pick(i)) for i in range(len(replay.segments))]  # type: ignore[arg-type]


def assert_gathers(replay: EpisodicReplay, model: Model, pairs: list[tuple[int, int]]) -> None:
    """What the replay returns for these (step, stream) is what happened."""
    if not pairs:
        return
    steps, streams = np.array(pairs, dtype=np.int64).T
    following = [model.rows[step + 1] for step in steps]

    def column(name: str) -> list[object]:
        return [getattr(row, name)[stream] for row, stream in zip(following, streams, strict=True)]

    batch = replay.read(steps, streams)
    states, next_states = batch.states, batch.next_states
    assert states.dtype == next_states.dtype == replay.frame_dtype
    np.testing.assert_array_equal(
        states.numpy(), [model.seen[t][n] for t, n in zip(steps, streams, strict=True)]
    )
    np.testing.assert_array_equal(
        next_states.numpy(), [model.seen[t + 1][n] for t, n in zip(steps, streams, strict=True)]
    )
    for name, dtype in (
        ("actions", torch.int64),
        ("rewards", torch.float32),
        ("terminated", torch.bool),
        ("probabilities", torch.float32),
    ):
        values = getattr(batch, name)
        assert values.dtype == dtype
        np.testing.assert_array_equal(values.numpy(), column(name))


def assert_holds(replay: EpisodicReplay, model: Model) -> None:
    """The replay holds exactly what the model says, and returns it as it was."""
    assert replay.transitions.num_steps == len(model.rows)
    table = stored_segments(replay)
    assert len(table) == len(set(table))
    assert set(table) == model.segments()
    transitions = model.transitions()
    assert len(replay.transitions) == len(transitions)
    for step in range(-1, len(model.rows) + 1):
        for stream in range(model.num_streams):
            assert replay.transitions.is_stored(stream, step) == ((step, stream) in transitions)
    assert_gathers(replay, model, sorted(transitions))
    for segment in table:
        assert {(segment.start + k, segment.stream) for k in range(segment.length)} <= transitions
