"""The replay memory: by hand, against a model that forgets nothing, and its statistics."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ebu.host_memory
from ebu.errors import UsageError
from ebu.replay import EpisodicReplay
from ebu.segments import Segment
from tests.ebu.replay_model import (
    CPU,
    Chances,
    Model,
    Row,
    assert_gathers,
    assert_holds,
    play,
    stored_segments,
)

# A uniformity test with this level fails a correct sampler once in a million seeds.
ERROR_RATE = 1e-6


def make_replay(
    capacity: int,
    num_streams: int = 1,
    *,
    frame_shape: tuple[int, ...] = (2,),
    frame_dtype: torch.dtype = torch.uint8,
    stack: int = 4,
) -> EpisodicReplay:
    return EpisodicReplay(
        capacity=capacity,
        num_streams=num_streams,
        frame_shape=frame_shape,
        frame_dtype=frame_dtype,
        stack=stack,
        device=CPU,
    )


def scripted(replay: EpisodicReplay, events: str, first_frame: int = 1) -> Model:
    """Append one row of a single stream for each letter; its frames count upwards.

    s started, . nothing, l life lost or game over (terminated), t truncated
    """
    model = Model(replay)
    for frame, event in enumerate(events, first_frame):
        row = Row(
            np.full((1, *replay.frame_shape), frame, np.uint8),
            np.array([frame % 5]),
            np.array([frame / 2], np.float32),
            np.array([event == "l"]),
            np.array([event == "t"]),
            np.array([event == "s"]),
            np.array([1 / frame], np.float32),
        )
        model.append(row)
        replay.append(*row)
    return model


def stacks(replay: EpisodicReplay, steps: list[int], *, following: bool = False) -> list[list[int]]:
    """The frames' numbers in the stacks of stream 0."""
    batch = replay.read(np.array(steps), np.zeros(len(steps), np.int64))
    gathered = batch.next_states if following else batch.states
    return gathered[:, :, 0].tolist()


def test_two_games_by_hand() -> None:
    replay = make_replay(100)
    # Frames 1 2 3 4 5 of a game that loses a life at 3 and ends at 5; then 6 7 of the next.
    scripted(replay, "s.l.ls.")
    assert stored_segments(replay) == [Segment(0, 0, 2, True), Segment(0, 2, 2, True)]
    # Zeros before the game's first frame; the lost life hides no frame.
    assert stacks(replay, [0, 1, 2, 3]) == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert stacks(replay, [1, 3], following=True) == [[0, 1, 2, 3], [2, 3, 4, 5]]
    # The second game's first state holds nothing of the first game.
    assert stacks(replay, [5]) == [[0, 0, 0, 6]]
    assert len(replay.transitions) == 5
    assert not replay.transitions.is_stored(0, 4)  # the game's last frame leads nowhere
    steps, streams = np.array([1, 3, 5]), np.zeros(3, np.int64)
    assert replay.read(steps, streams).rewards.tolist() == [1.5, 2.5, 3.5]
    assert replay.read(steps, streams).actions.tolist() == [3, 0, 2]
    assert replay.read(steps, streams).terminated.tolist() == [True, True, False]


@st.composite
def scenes(draw: st.DrawFn) -> Any:
    stack = draw(st.integers(1, 4))
    num_streams = draw(st.integers(1, 3))
    smallest = num_streams * stack + 1
    chance = st.sampled_from([0.0, 0.02, 0.1, 0.5])
    return {
        "stack": stack,
        "num_streams": num_streams,
        "capacity": draw(st.integers(smallest, smallest + 40 * num_streams)),
        "chances": Chances(draw(chance), draw(chance), draw(chance), draw(chance)),
        "frame_dtype": draw(st.sampled_from([torch.uint8, torch.float32])),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "laps": draw(st.floats(0.2, 3.5)),
    }


@given(scenes())
@settings(max_examples=120, deadline=None)
def test_holds_what_the_model_says(scene: Any) -> None:
    replay = make_replay(
        scene["capacity"],
        scene["num_streams"],
        stack=scene["stack"],
        frame_dtype=scene["frame_dtype"],
    )
    model = Model(replay)
    rng = np.random.default_rng(scene["seed"])
    rows = play(rng, replay.num_streams, replay.frame_shape, replay.frame_dtype, scene["chances"])
    total = max(2, int(scene["laps"] * replay.ring_length))
    for count, row in enumerate(islice(rows, total), 1):
        model.append(row)
        replay.append(*row)
        if len(replay.transitions) and rng.random() < 0.3:
            drawn = replay.transitions.draw(rng, 5)
            assert_gathers(replay, model, list(zip(*drawn, strict=True)))
        if len(replay.segments) and rng.random() < 0.3:
            stream, start, length, _ = replay.segments.draw(rng)
            assert_gathers(replay, model, [(start + k, stream) for k in range(length)])
        if count % 7 == 0 or count == total:
            assert_holds(replay, model)


def filled(
    capacity: int, num_streams: int, chances: Chances, seed: int, laps: float = 2.3
) -> tuple[EpisodicReplay, Model]:
    replay = make_replay(capacity, num_streams)
    model = Model(replay)
    rng = np.random.default_rng(seed)
    rows = play(rng, num_streams, (2,), torch.uint8, chances)
    for row in islice(rows, int(laps * replay.ring_length)):
        model.append(row)
        replay.append(*row)
    return replay, model


@given(scenes(), st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_neighbours_are_joined_by_what_the_model_holds(scene: Any, before: int, after: int) -> None:
    num_streams = scene["num_streams"]
    capacity = scene["capacity"] + 4 * num_streams
    replay, model = filled(capacity, num_streams, scene["chances"], scene["seed"], scene["laps"])
    pairs = sorted(model.transitions())
    if not pairs:
        return
    steps, streams = np.array(pairs, dtype=np.int64).T
    around, joined = replay.transitions.neighbours(steps, streams, before=before, after=after)
    assert around.shape == joined.shape == (len(pairs), before + 1 + after)
    stored = set(pairs)
    for row, (step, stream) in enumerate(pairs):
        for column, offset in enumerate(range(-before, after + 1)):
            way = range(min(step, step + offset), max(step, step + offset) + 1)
            expected = all((k, stream) in stored for k in way)
            assert joined[row, column] == expected
            assert around[row, column] == (step + offset if expected else step)
    # Queried many at once, `stored` agrees with `is_stored`.
    every = np.arange(-1, replay.transitions.num_steps + 1)
    for stream in range(replay.num_streams):
        mask = replay.transitions.stored(every, np.full(len(every), stream))
        assert mask.tolist() == [replay.transitions.is_stored(stream, int(step)) for step in every]


def test_a_batch_gathers_other_transitions_of_its_memory() -> None:
    replay, model = filled(200, 2, Chances(), seed=8)
    steps, streams = replay.transitions.draw(np.random.default_rng(9), 30)
    batch = replay.read(steps[:5], streams[:5])
    other = batch.at(torch.from_numpy(replay.transitions.locate(steps[5:], streams[5:])))
    expected = replay.read(steps[5:], streams[5:])
    for part in ("states", "next_states", "actions", "rewards", "terminated", "probabilities"):
        assert torch.equal(getattr(other, part), getattr(expected, part))
        assert len(getattr(batch, part)) == 5
    assert_gathers(replay, model, list(zip(steps.tolist(), streams.tolist(), strict=True)))


def test_segments_are_drawn_uniformly() -> None:
    replay, _ = filled(600, 3, Chances(), seed=1)
    table = stored_segments(replay)
    assert len({segment.length for segment in table}) > 5
    rng = np.random.default_rng(2)
    counts = dict.fromkeys(table, 0)
    for _ in range(100 * len(table)):
        counts[replay.segments.draw(rng)] += 1
    assert scipy.stats.chisquare(list(counts.values())).pvalue > ERROR_RATE


@pytest.mark.parametrize("chances", [Chances(), Chances(over=0.5), Chances(0.01, 0.0, 0.0)])
def test_transitions_are_drawn_uniformly(chances: Any) -> None:
    replay, model = filled(300, 3, chances, seed=3)
    rng = np.random.default_rng(4)
    counts = dict.fromkeys(model.transitions(), 0)
    for _ in range(200):
        steps, streams = replay.transitions.draw(rng, len(counts) // 2)
        assert steps.dtype == streams.dtype == np.int64
        for pair in zip(steps.tolist(), streams.tolist(), strict=True):
            counts[pair] += 1
    assert scipy.stats.chisquare(list(counts.values())).pvalue > ERROR_RATE


def test_what_is_not_stored_is_refused() -> None:
    replay = make_replay(10)
    with pytest.raises(ValueError, match="no segment"):
        replay.segments.draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="no transition"):
        replay.transitions.draw(np.random.default_rng(0), 1)
    scripted(replay, "s" + "." * 14)
    stream = np.zeros(1, np.int64)
    for step in (-1, 4, 7, 14, 15, 100):
        assert not replay.transitions.is_stored(0, step)
        with pytest.raises(IndexError, match="not stored"):
            replay.read(np.array([step]), stream)
    assert not replay.transitions.is_stored(1, 10)
    assert not replay.transitions.is_stored(-1, 10)
    assert stacks(replay, [8]) == [[6, 7, 8, 9]]


def test_a_lone_transition_among_many_is_found() -> None:
    replay = make_replay(400)
    scripted(replay, "s" * 100 + "l" + "s" * 100)
    steps, _ = replay.transitions.draw(np.random.default_rng(0), 3)
    assert steps.tolist() == [99, 99, 99]


def test_rows_that_do_not_fit_are_refused() -> None:
    replay = make_replay(20, 2)
    row = next(play(np.random.default_rng(0), 2, (2,), torch.uint8, Chances()))
    with pytest.raises(ValueError, match="first append"):
        replay.append(*row._replace(started=np.array([True, False])))
    with pytest.raises(ValueError, match="frames are"):
        replay.append(*row._replace(frames=row.frames.astype(np.float32)))
    with pytest.raises(ValueError, match="frames are"):
        replay.append(*row._replace(frames=row.frames[:1]))
    with pytest.raises(ValueError, match="column"):
        replay.append(*row._replace(actions=row.actions[:1]))
    assert replay.transitions.num_steps == 0


def test_the_smallest_memory_holds_a_segment_and_a_smaller_one_is_refused() -> None:
    for stack, num_streams in ((1, 1), (4, 1), (4, 3), (16, 2)):
        smallest = stack * num_streams + 1
        with pytest.raises(UsageError, match=f"--replay-capacity to at least {smallest}"):
            make_replay(smallest - 1, num_streams, stack=stack)
        replay = make_replay(smallest, num_streams, stack=stack)
        rows = play(np.random.default_rng(0), num_streams, (2,), torch.uint8, Chances(0, 0, 0))
        for row in islice(rows, 5 * stack):
            replay.append(*row)
        assert len(replay.segments) >= 1


def test_stated_bytes_are_those_allocated() -> None:
    replay = make_replay(1000, 8, frame_shape=(84, 84))
    buffers = [*vars(replay).values(), *vars(replay.segments).values()]
    allocated = sum(b.nbytes for b in buffers if isinstance(b, torch.Tensor | np.ndarray))
    stated = EpisodicReplay.required_bytes(1000, 8, (84, 84), torch.uint8)
    assert stated == pytest.approx(allocated, abs=1000)
    assert replay.statistics()["bytes"] == stated


def test_what_does_not_fit_in_memory_is_refused_before_it_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ebu.host_memory, "available_bytes", lambda device: 3_200_000_000)
    with pytest.raises(UsageError) as error:
        make_replay(1_000_000, 1, frame_shape=(84, 84))
    assert str(error.value) == (
        "a replay of 1,000,000 transitions needs 7.09 GB but 3.20 GB are available on cpu: "
        "lower --replay-capacity to at most 400000"
    )
    make_replay(400_000, 1, frame_shape=(84, 84))
    with pytest.raises(UsageError, match="free some memory"):
        make_replay(1_000_000, 1, frame_shape=(84_000, 84_000))
