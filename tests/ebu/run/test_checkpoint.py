"""Checkpoints: exact, whole or absent, verified before use."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ebu.run.checkpoint_manifest
import ebu.run.reading
from ebu.errors import EbuError
from ebu.run.checkpoint import load_latest, save_checkpoint
from tests.checkpoints import reseal

FIRST, SECOND, THIRD = "frames-000000000100", "frames-000000000200", "frames-000000000300"


def write_replay(directory: Path) -> None:
    (directory / "replay").mkdir()
    (directory / "replay" / "frames.zst").write_bytes(bytes(range(256)) * 40)


def save(
    root: Path, name: str, *, keep: int = 2, run: dict[str, Any] | None = None, **values: Any
) -> Path:
    state = {"name": name, "learner": {"weights": torch.arange(100.0)}, **values}
    logs = {"metrics.jsonl": 7}
    return save_checkpoint(root, name, state, writers=[write_replay], logs=logs, run=run, keep=keep)


def load_state(root: Path) -> dict[str, Any]:
    checkpoint = load_latest(root)
    assert checkpoint is not None
    assert checkpoint.warnings == []
    return checkpoint.state


def assert_same(ours: Any, theirs: Any) -> None:
    """Same types, same dtypes and shapes, same bits."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    elif isinstance(ours, torch.Tensor):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        ours, theirs = (x.contiguous().flatten().view(torch.uint8) for x in (ours, theirs))
        assert ours.equal(theirs)
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(ours, float):
        assert ours.hex() == theirs.hex()  # tells -0.0 from 0.0, takes one NaN for another
    else:
        assert ours == theirs


# --- what comes back ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bool, torch.uint8, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    ],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2, (7 * 16,), generator=torch.Generator().manual_seed(1))
    values = (bits * 1.7).to(dtype)
    state = {
        "flat": values,
        "matrix": values.reshape(7, 16),
        "transposed": values.reshape(7, 16).T,
        "every_other": values[::2],
        "no_axes": values[3],
        "empty": values[:0],
        "empty_matrix": torch.zeros((0, 3), dtype=dtype),
    }
    save_checkpoint(tmp_path, FIRST, state)
    assert_same(state, load_state(tmp_path))


@pytest.mark.parametrize("dtype", ["?", "u1", "u2", "u4", "u8", "i1", "i8", "f2", "f4", "f8"])
def test_arrays_come_back_as_arrays(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, 24).astype(dtype).reshape(4, 6)
    state = {
        "matrix": values,
        "no_axes": np.array(values[0, 0]),
        "empty": values[:, :0],
        "fortran": np.asfortranarray(values),
        "reversed": values[::-1],
    }
    save_checkpoint(tmp_path, FIRST, state)
    loaded = load_state(tmp_path)
    assert_same(state, loaded)
    loaded["matrix"][0] = 1  # what is loaded can be written to


def test_extreme_numbers(tmp_path: Path) -> None:
    state = {
        "floats": [math.inf, -math.inf, math.nan, -0.0, 5e-324, 0.1, 1.7976931348623157e308],
        "tensor": torch.tensor([math.inf, -math.inf, math.nan, -0.0]),
        "largest": np.array([2**64 - 1], dtype=np.uint64),
        "integers": [0, -1, 2**63, 2**127, -(2**8192) + 1],
        "enormous": 7**20_000,
        "enormous_negative": -(7**20_000),
        "truth": [True, False, None],
        "text": "ε β\n\x00 \ud800 '\"\\/",
    }
    save_checkpoint(tmp_path, FIRST, state)
    assert_same(state, load_state(tmp_path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
keys = st.text(max_size=8).filter(lambda key: "/" not in key and key != "__metadata__")
states = st.recursive(
    json_values
    | st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(
        lambda numbers: np.array(numbers, dtype=np.int64)
    ),
    lambda inner: st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=st.dictionaries(keys, states, max_size=4))
def test_any_state_comes_back(tmp_path: Path, state: dict[str, Any]) -> None:
    save_checkpoint(tmp_path, FIRST, state)
    assert_same(state, load_state(tmp_path))


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    weights = torch.arange(12.0).reshape(3, 4)
    state = {"weights": weights, "again": weights, "part": weights[1:], "gradient": weights[0]}
    state["parameter"] = torch.nn.Parameter(weights)
    save_checkpoint(tmp_path, FIRST, state)
    loaded = load_state(tmp_path)
    assert all(loaded[key].equal(state[key]) for key in state)
    loaded["weights"].zero_()
    assert loaded["again"].equal(weights)


class Surprise:
    """Would be loaded by a pickle."""


@pytest.mark.parametrize(
    "state",
    [
        {"learner": {"bad": np.float32(0.1)}},
        {"learner": {"bad": np.int64(1)}},
        {"learner": {"bad": {1, 2}}},
        {"learner": {"bad": Surprise()}},
        {"learner": {"bad": [torch.zeros(1)]}},
        {"learner": {"bad": [{1: 2}]}},
        {"learner": {"bad": [7**20_000]}},
        {"learner": {"bad": np.array([None, "x"], dtype=object)}},
        {"learner": {"bad": np.array(["x"])}},
        {"learner": {"bad/": 1}},
    ],
)
def test_a_leaf_that_would_not_come_back_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="learner/bad"):
        save_checkpoint(tmp_path, FIRST, state)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_is_loaded_with_what_writers_wrote_and_two_are_kept(tmp_path: Path) -> None:
    for name in (FIRST, SECOND, THIRD):
        save(tmp_path, name)
    assert sorted(os.listdir(tmp_path)) == [SECOND, THIRD]
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.state["name"]) == (THIRD, THIRD)
    assert checkpoint.directory == tmp_path / THIRD
    assert checkpoint.logs == {"metrics.jsonl": 7}
    assert (checkpoint.directory / "replay" / "frames.zst").stat().st_size == 256 * 40


# --- which checkpoints stay -----------------------------------------------------------------


def test_checkpoints_the_run_fell_back_from_go(tmp_path: Path) -> None:
    save(tmp_path, FIRST)
    third = save(tmp_path, THIRD)
    (third / "state.json").write_bytes(b"{}")
    save(tmp_path, SECOND)
    assert sorted(os.listdir(tmp_path)) == [FIRST, SECOND]


def test_killed_while_replacing(tmp_path: Path) -> None:
    """The replaced one is used only where its successor is not there yet."""
    replaced = save(tmp_path, SECOND, attempt=1).rename(tmp_path / "aside")
    successor = save(tmp_path, SECOND, attempt=2)
    replaced.rename(tmp_path / f"{SECOND}.replaced")
    assert load_state(tmp_path)["attempt"] == 2
    shutil.rmtree(successor)
    assert load_state(tmp_path)["attempt"] == 1
    save(tmp_path, THIRD)
    assert load_state(tmp_path)["name"] == THIRD


def test_nothing_to_load(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "absent") is None
    assert load_latest(tmp_path) is None
    (tmp_path / f".{FIRST}.1234.tmp").mkdir()
    assert load_latest(tmp_path) is None


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    save(tmp_path, FIRST)
    (tmp_path / f".{SECOND}.1234.tmp").mkdir()
    (tmp_path / f".{SECOND}.1234.tmp" / "state.json").write_bytes(b"half")
    # An evaluation during a run leaves the checkpoint alone that is being written.
    load_latest(tmp_path, state_only=True)
    assert len(os.listdir(tmp_path)) == 2
    load_latest(tmp_path)
    assert os.listdir(tmp_path) == [FIRST]


# --- damage ---------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES = ["state.safetensors", "state.json", "replay/frames.zst", "manifest.json"]
DAMAGES: list[Callable[[Path], object]] = [
    truncate,
    alter,
    Path.unlink,
    replace_by_directory,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes() + b"\0"),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, file: str, damage: Callable[[Path], object]
) -> None:
    save(tmp_path, FIRST)
    damage(save(tmp_path, SECOND) / file)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state["name"] == checkpoint.name == FIRST
    [warning] = checkpoint.warnings
    assert warning.startswith(f"checkpoint {SECOND} is damaged (")
    assert warning.endswith(f"); using {FIRST}")
    assert "\n" not in warning


def test_all_damaged(tmp_path: Path) -> None:
    alter(save(tmp_path, FIRST) / "state.json")
    reseal(save(tmp_path, SECOND), format=2)
    (save(tmp_path, THIRD, keep=3) / "replay" / "frames.zst").unlink()
    with pytest.raises(EbuError, match=r"every checkpoint .* is damaged") as caught:
        load_latest(tmp_path)
    message = str(caught.value)
    assert f"{THIRD}: replay/frames.zst: missing" in message
    assert f"{SECOND}: manifest.json: format 2, not 1" in message
    assert f"{FIRST}: state.json: digest differs" in message
    assert "\n" not in message


def test_a_file_in_place_of_the_directory_of_checkpoints(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.write_bytes(b"")
    with pytest.raises(EbuError, match="cannot read the checkpoints"):
        load_latest(root)
    with pytest.raises(EbuError, match="cannot save the checkpoint"):
        save(root, FIRST)


def test_only_the_state(tmp_path: Path) -> None:
    directory = save(tmp_path, FIRST)
    (directory / "replay" / "frames.zst").unlink()
    checkpoint = load_latest(tmp_path, state_only=True)
    assert checkpoint is not None
    assert checkpoint.state["name"] == FIRST
    alter(directory / "state.safetensors")
    with pytest.raises(EbuError, match=r"state\.safetensors: digest differs"):
        load_latest(tmp_path, state_only=True)


odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(lambda rest: ["tensor", *rest])
        | st.sampled_from(["array", "hexadecimal", "value"]).flatmap(
            lambda kind: st.lists(inner, max_size=2).map(lambda rest: [kind, *rest])
        )
        | st.dictionaries(st.sampled_from(["learner", "weights", "files", "logs", "x"]), inner)
    ),
    max_leaves=10,
)
odd_content = st.binary(max_size=40) | odd_json.map(lambda value: json.dumps(value).encode())


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(file=st.sampled_from(FILES), content=odd_content, sealed=st.booleans())
def test_no_content_gives_a_traceback(
    tmp_path: Path, file: str, content: bytes, sealed: bool
) -> None:
    save(tmp_path, FIRST)
    directory = save(tmp_path, SECOND)
    (directory / file).write_bytes(content)
    if sealed and file != "manifest.json":
        reseal(directory)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name in (FIRST, SECOND)
    if checkpoint.name == SECOND:
        assert sealed


@pytest.mark.parametrize("field", ["files", "logs"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=odd_json)
def test_no_manifest_gives_a_traceback(tmp_path: Path, field: str, value: Any) -> None:
    save(tmp_path, FIRST)
    directory = save(tmp_path, SECOND)
    reseal(directory, **{field: value})
    assert load_latest(tmp_path) is not None


# --- checkpoints of others ------------------------------------------------------------------

RUN = {"game": "pong", "beta": 0.5, "seed": 0, "layers": (1, 2), "num_actions": 6}


@pytest.mark.parametrize(
    "change", [{"game": "qbert"}, {"beta": 1}, {"seed": 1}, {"layers": [1]}, {"num_actions": 4}]
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    save(tmp_path / "own", FIRST, run=RUN)
    save(tmp_path / "other", SECOND, run=RUN | change)
    assert load_latest(tmp_path / "own", run=RUN) is not None
    shutil.copytree(tmp_path / "other" / SECOND, tmp_path / "own" / SECOND)
    (name,) = change
    with pytest.raises(
        EbuError, match=rf"{SECOND} .*another run than config.json \({name} was .*: restore"
    ):
        load_latest(tmp_path / "own", run=RUN)
    assert sorted(os.listdir(tmp_path / "own")) == [FIRST, SECOND]


def test_settings_that_only_one_version_has_make_no_other_run(tmp_path: Path) -> None:
    save(tmp_path, FIRST, run=RUN)
    assert load_latest(tmp_path, run=RUN | {"added_later": 1}) is not None
    save(tmp_path, SECOND)  # by a version that recorded none
    checkpoint = load_latest(tmp_path, run=RUN)
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.warnings) == (SECOND, [])


def test_a_checkpoint_under_another_name_is_passed_over(tmp_path: Path) -> None:
    directory = save(tmp_path, FIRST)
    shutil.copytree(directory, tmp_path / THIRD)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name == FIRST
    assert f"copy of '{FIRST}'" in checkpoint.warnings[0]


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    directory = save(tmp_path, FIRST)
    shutil.copytree(directory, tmp_path / "keep")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "zzz").mkdir()
    for name in (SECOND, THIRD):
        save(tmp_path, name, keep=1)
        checkpoint = load_latest(tmp_path)
        assert checkpoint is not None
        assert (checkpoint.name, checkpoint.warnings) == (name, [])
    assert sorted(os.listdir(tmp_path)) == [THIRD, "keep", "notes.txt", "zzz"]


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "state.safetensors"])
def test_a_directory_that_is_saved_meanwhile_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    save(tmp_path, FIRST)
    opened = ebu.run.reading.open_file
    saved: list[Path] = []

    def open_late(path: Path, most: int | None = None) -> Any:
        if path.name == file and not saved:
            saved.append(path)
            save(tmp_path, SECOND, keep=1)
        return opened(path, most)

    monkeypatch.setattr(ebu.run.reading, "open_file", open_late)
    monkeypatch.setattr(ebu.run.checkpoint_manifest, "open_file", open_late)
    checkpoint = load_latest(tmp_path, state_only=True)
    assert saved
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.warnings) == (SECOND, [])


# --- a disk that fails ----------------------------------------------------------------------


def test_a_writer_that_fails(tmp_path: Path) -> None:
    save(tmp_path, FIRST)

    def write(directory: Path) -> None:
        (directory / "frames").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(directory / "frames"))

    with pytest.raises(
        EbuError, match=f"{SECOND}: No space left on device;.* free space"
    ) as caught:
        save_checkpoint(tmp_path, SECOND, {}, writers=[write])
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [FIRST]
    assert load_state(tmp_path)["name"] == FIRST


def test_a_disk_that_does_not_say_what_lies_there_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "checkpoints"
    save(root, FIRST)
    calls = 0

    def failing(path: Any, *args: Any, lstat: Any = os.lstat, **kwargs: Any) -> os.stat_result:
        nonlocal calls
        if os.fspath(path) == str(root):
            calls += 1
            if calls == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        result: os.stat_result = lstat(path, *args, **kwargs)
        return result

    monkeypatch.setattr(os, "lstat", failing)
    for work in (lambda: save(root, SECOND), lambda: load_state(root)):
        at = calls = 0
        work()
        for at in range(1, calls + 1):
            calls = 0
            with pytest.raises(EbuError, match=os.strerror(errno.EIO)):
                work()
            calls = at = 0
            assert load_latest(root) is not None


def test_everything_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    published: list[tuple[str, set[str]]] = []
    fsync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        published.append((os.path.basename(target), set(synced)))
        synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    save(tmp_path, FIRST)
    [(name, before)] = published
    assert name == FIRST
    files = {"state.safetensors", "state.json", "replay", "frames.zst", "manifest.json"}
    assert files < before
    assert synced == [tmp_path.name]


# --- SIGKILL --------------------------------------------------------------------------------

KILLS = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from ebu.run.checkpoint import load_latest, save_checkpoint

template, root = Path(sys.argv[1]), Path(sys.argv[2])
# What is written survives SIGKILL; in which order it reaches the disk is another test.
os.fsync = lambda descriptor: None

def save(root, name, number):
    def write(directory):
        with (directory / "frames").open("wb", buffering=0) as file:
            for _ in range(4):
                file.write(bytes([number]) * 1000)
                sys.audit("in the middle of a file")
    state = {"number": number, "weights": torch.full((1000,), float(number))}
    save_checkpoint(root, name, state, writers=[write])

def check(root, numbers):
    checkpoint = load_latest(root)
    number = checkpoint.state["number"]
    assert number in numbers, number
    assert checkpoint.warnings == [], checkpoint.warnings
    assert checkpoint.state["weights"].eq(number).all()
    assert (checkpoint.directory / "frames").read_bytes() == bytes([number]) * 4000
    # Nothing that is there is half there.
    for directory in root.iterdir():
        assert sorted(os.listdir(directory)) == [
            "frames", "manifest.json", "state.json", "state.safetensors"
        ], directory

save(template, "frames-1", 1)
save(template, "frames-2", 2)
for third in ("frames-3", "frames-2"):  # a further one; one in the place of the newest
    point, status = 0, None
    while status != 0:
        point += 1
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            left = point
            def kill(event, _):
                global left
                if event.startswith(("open", "os.", "shutil.", "in the middle")):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(kill)
            save(root, third, 3)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        check(root, {2, 3} if status else {3})
        save(root, third, 3)
        check(root, {3})
        assert len(os.listdir(root)) == 2, os.listdir(root)
    print(point)
"""


def test_killed_at_any_moment_of_saving(tmp_path: Path) -> None:
    """Killed before each access to the file system in turn, and within a file."""
    command = [sys.executable, "-c", KILLS, str(tmp_path / "template"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(int(points) > 20 for points in done.stdout.split())


@pytest.mark.parametrize("name", ["updates-7", "states", "trained", "updates-7.replaced"])
def test_names_of_other_programs_are_left_alone(tmp_path: Path, name: str) -> None:
    save(tmp_path, FIRST)
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    save(tmp_path, SECOND, keep=1)
    assert load_state(tmp_path)["name"] == SECOND
    assert (tmp_path / name / "mine").exists()
    assert not (tmp_path / FIRST).exists()


def test_checkpoints_of_distillations_are_loaded_by_their_kind(tmp_path: Path) -> None:
    for name in ("updates-07", "updates-11", "trained", FIRST):
        save(tmp_path, name, keep=1)
    for kind, name in (("updates", "updates-11"), ("trained", "trained"), ("frames", FIRST)):
        checkpoint = load_latest(tmp_path, kind=kind)
        assert checkpoint is not None
        assert checkpoint.name == name
    assert load_latest(tmp_path, kind="states") is None
