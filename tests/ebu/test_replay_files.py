"""A replay memory that was saved and loaded is the one that never was."""

import json
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import ebu.replay_files
from ebu.batch import ACTION, PROBABILITY, REWARD, TERMINATED
from ebu.errors import EbuError
from ebu.replay import EpisodicReplay
from ebu.replay_files import read_frames, write_frames
from ebu.run.reading import RefusedFileError
from tests.ebu.replay_model import (
    CPU,
    NUM_ACTIONS,
    Chances,
    Model,
    assert_gathers,
    assert_holds,
    play,
    stored_segments,
)
from tests.made_up import same


def make_replay(**changes: Any) -> EpisodicReplay:
    arguments = {
        "capacity": 90,
        "num_streams": 3,
        "frame_shape": (2, 3),
        "frame_dtype": torch.uint8,
        "stack": 4,
        "device": CPU,
    }
    return EpisodicReplay(**{**arguments, **changes})


def filled(appends: int, seed: int = 0, **changes: Any) -> EpisodicReplay:
    replay = make_replay(**changes)
    rows = play(
        np.random.default_rng(seed),
        replay.num_streams,
        replay.frame_shape,
        replay.frame_dtype,
        Chances(),
    )
    for row in islice(rows, appends):
        replay.append(*row)
    return replay


@given(
    appends=st.integers(0, 150),
    further=st.integers(1, 70),
    stack=st.integers(1, 4),
    frame_dtype=st.sampled_from([torch.uint8, torch.float32]),
    chunk_bytes=st.sampled_from([1, 20, 100, 1 << 20]),
    used_before=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_saved_and_loaded_continues_like_one_never_saved(
    tmp_path_factory: pytest.TempPathFactory,
    appends: int,
    further: int,
    stack: int,
    frame_dtype: Any,
    chunk_bytes: int,
    used_before: Any,
    seed: int,
) -> None:
    original = make_replay(stack=stack, frame_dtype=frame_dtype)
    model = Model(original)
    rng = np.random.default_rng(seed)
    rows = play(rng, 3, (2, 3), frame_dtype, Chances(left=0.05))
    for row in islice(rows, appends):
        model.append(row)
        original.append(*row)

    directory = tmp_path_factory.mktemp("frames")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ebu.replay_files, "_CHUNK_BYTES", chunk_bytes)
        state = original.state_dict()
        original.write_frames(directory)
        # Loading into a memory that has been in use, as after a damaged checkpoint.
        settings_ = {"stack": stack, "frame_dtype": frame_dtype}
        loaded = filled(77, **settings_) if used_before else make_replay(**settings_)
        loaded.load_state_dict(state, NUM_ACTIONS)
        loaded.read_frames(directory)
    assert_holds(loaded, model)

    for row in islice(rows, further):
        model.append(row)
        for replay in (original, loaded):
            replay.append(*row)
        assert stored_segments(loaded) == stored_segments(original)
        if len(original.transitions):
            number = int(rng.integers(2**31))
            drawn = [
                r.transitions.draw(np.random.default_rng(number), 6) for r in (original, loaded)
            ]
            np.testing.assert_array_equal(drawn[0], drawn[1])
            assert_gathers(loaded, model, list(zip(*drawn[1], strict=True)))
    assert_holds(loaded, model)
    assert loaded.statistics() == original.statistics()
    assert same(loaded.state_dict(), original.state_dict())


def test_saving_changes_nothing(tmp_path: Path) -> None:
    one, other = filled(50), filled(50)
    one.state_dict()
    one.write_frames(tmp_path)
    assert same(one.state_dict(), other.state_dict())
    for row in islice(play(np.random.default_rng(1), 3, (2, 3), torch.uint8, Chances()), 20):
        one.append(*row)
        other.append(*row)
    assert same(one.state_dict(), other.state_dict())


def test_an_unchanging_picture_compresses_well(tmp_path: Path) -> None:
    """A picture of noise on which one object moves: nothing but repetition to find."""
    replay = make_replay(capacity=400, num_streams=2, frame_shape=(84, 84))
    picture = np.random.default_rng(0).integers(256, size=(84, 84), dtype=np.uint8)
    row = next(play(np.random.default_rng(0), 2, (84, 84), torch.uint8, Chances()))
    for step in range(200):
        frames = np.stack([picture, picture])
        frames[:, 40:44, step % 80 : step % 80 + 4] = 0
        replay.append(*row._replace(frames=frames, started=np.full(2, step == 0)))
    replay.write_frames(tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert written < 0.1 * 400 * 84 * 84


@pytest.mark.parametrize(
    "change",
    [
        {"capacity": 91},
        {"num_streams": 2},
        {"stack": 3},
        {"frame_shape": (3, 2)},
        {"frame_dtype": torch.float32},
    ],
)
def test_another_construction_is_refused_by_name(change: Any) -> None:
    with pytest.raises(EbuError, match=next(iter(change))) as error:
        make_replay(**change).load_state_dict(filled(50).state_dict(), NUM_ACTIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (ACTION, NUM_ACTIONS, "actions holds 18.0, not from 0 to 17"),
        (ACTION, -1, "actions holds -1.0"),
        (ACTION, 0.5, "an action is not whole"),
        (ACTION, np.nan, "actions holds nan"),
        (REWARD, np.nan, "a reward is not finite"),
        (REWARD, -np.inf, "a reward is not finite"),
        (TERMINATED, np.nan, "ends holds nan"),
        (PROBABILITY, 1.5, "probabilities holds 1.5"),
    ],
)
@pytest.mark.parametrize("appends", [20, 50])
def test_a_value_that_no_transition_has_is_refused_where_one_starts(
    appends: int, column: int, value: float, message: str
) -> None:
    replay = filled(appends)
    state = replay.state_dict()
    slots, starts = state["columns"]["slots"], state["columns"]["starts"]
    slots[starts < 128, column] = value  # those of no transition are never read
    make_replay().load_state_dict(state, NUM_ACTIONS)
    step, stream = np.argwhere(starts.numpy() >= 128)[-1].tolist()
    slots[step, stream, column] = value
    with pytest.raises(RefusedFileError, match=f"^replay/columns/slots: {message}"):
        make_replay().load_state_dict(state, NUM_ACTIONS)


DATA, INDEX = "frames.zst", "frames.json"


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def forget_a_chunk(data: bytes) -> bytes:
    index = json.loads(data)
    return json.dumps({**index, "chunks": index["chunks"][:-1]}).encode()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (DATA, None),
        (DATA, lambda data: data[:-1]),
        (DATA, lambda data: data + b"x"),
        (DATA, flip_a_bit),
        (INDEX, None),
        (INDEX, lambda data: b""),
        (INDEX, lambda data: b"[1]"),
        (INDEX, forget_a_chunk),
        ("of another step", None),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str, damage: Any) -> None:
    replay = filled(50)
    replay.write_frames(tmp_path)
    loaded = make_replay()
    loaded.load_state_dict(replay.state_dict(), NUM_ACTIONS)
    loaded.read_frames(tmp_path)
    if name == "of another step":
        filled(51).write_frames(tmp_path)
    elif damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(EbuError, match="the replay frames in") as error:
        loaded.read_frames(tmp_path)
    assert "\n" not in str(error.value)


def test_a_chunk_that_declares_more_than_it_should_is_refused_before_it_is_unpacked(
    tmp_path: Path,
) -> None:
    ring = torch.zeros((8, 1, 84, 84), dtype=torch.uint8)
    write_frames(tmp_path, ring, 0, 8)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    (tmp_path / "frames.zst").write_bytes(bomb)
    index = json.loads((tmp_path / "frames.json").read_text())
    index["chunks"][0][3] = len(bomb)
    (tmp_path / "frames.json").write_text(json.dumps(index))
    tracemalloc.start()
    with pytest.raises(EbuError, match=r"268435456 bytes, expected 56448"):
        read_frames(tmp_path, ring, 0, 8)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 22
    for size in (-1, 2**62, 1.5, "1", None, True):
        index["chunks"][0][3] = size
        (tmp_path / "frames.json").write_text(json.dumps(index))
        with pytest.raises(EbuError):
            read_frames(tmp_path, ring, 0, 8)
