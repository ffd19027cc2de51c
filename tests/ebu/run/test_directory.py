"""What a run directory accepts, and every reason to refuse one."""

import errno
import fcntl
import json
import os
import string
import threading
from pathlib import Path
from typing import Any

import pytest

from ebu.errors import EbuError, UsageError
from ebu.run.directory import (
    acquire_lock,
    differences,
    directory_name,
    is_locked,
    open_run_directory,
    read_config,
    write_config,
)

ENVIRONMENT = {"num_actions": 6, "stack": 4, "frame_shape": [84, 84]}


def config_of(**settings: Any) -> dict[str, Any]:
    defaults = {"game": "pong", "beta": 0.5, "frames": 1000, "threads": 2, "checkpoint_minutes": 5}
    return {"settings": {**defaults, **settings}, "environment": dict(ENVIRONMENT)}


def open_run(run_dir: Path, config: dict[str, Any] | None = None, **settings: Any) -> Any:
    return open_run_directory(
        run_dir,
        config_of(**settings) if config is None else config,
        may_change=frozenset({"checkpoint_minutes"}),
        may_grow=frozenset({"frames"}),
    )


def start_and_leave(run_dir: Path, **settings: Any) -> Path:
    open_run(run_dir, **settings).close()
    return run_dir


def refusal(run_dir: Path, **settings: Any) -> str:
    with pytest.raises(UsageError) as error:
        open_run(run_dir, **settings)
    message = str(error.value)
    assert "\n" not in message
    assert str(run_dir) in message
    return message


@pytest.mark.parametrize(
    "game",
    ["pong", "CartPole-v1", "ebu/Maze-v0", "my_module:MyEnv-v0", "a.b:c d#$%&*?\\'\"<>|é/../X-v0"],
)
def test_a_games_directory_has_no_letter_that_paths_choke_on(game: str) -> None:
    name = directory_name(game)
    assert set(name) <= set(string.ascii_letters + string.digits + "._-")
    assert name[0].isalnum()
    assert name.endswith(game.rpartition("/")[2].rpartition(":")[2][-4:])


def test_a_directory_is_made_with_its_parents_and_opened_again_with_the_same_settings(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "runs" / "pong"
    with open_run(run_dir):
        assert read_config(run_dir) == config_of()
    (run_dir / "checkpoints").mkdir()
    (run_dir / "metrics.jsonl").write_text("{}\n")
    start_and_leave(run_dir)
    # Settings compare as they read back.
    config = config_of(layers=(1, 2), rate=0.1, name=None)
    open_run(tmp_path / "other", config).close()
    open_run(tmp_path / "other", config).close()


@pytest.mark.parametrize("below", ["", "below"])
def test_a_path_where_nothing_can_be_made_is_refused(tmp_path: Path, below: str) -> None:
    path = tmp_path / "file"
    path.write_text("notes")
    assert "choose a" in refusal(path / below)
    assert path.read_text() == "notes"
    assert "choose another directory" in refusal(Path("/proc/run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look and write everywhere")
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_directory_that_may_not_be_written_or_entered_is_refused(
    tmp_path: Path, mode: int
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=mode)
    for run_dir in (closed, closed / "run"):
        refusal(run_dir)


@pytest.mark.parametrize("foreign", ["notes.txt", "config.yaml", "metrics.jsonl", ".git"])
def test_a_directory_with_other_files_is_refused_and_left_alone(
    tmp_path: Path, foreign: str
) -> None:
    (tmp_path / foreign).write_text("mine")
    assert "files that are not a run's" in refusal(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [foreign]


@pytest.mark.parametrize("leftover", ["lock", ".config.json"])
def test_what_a_start_that_was_killed_left_is_no_obstacle(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).write_text('{"settings": {"ga')
    start_and_leave(tmp_path)
    assert read_config(tmp_path) == config_of()


def test_other_settings_are_refused_and_all_of_them_named(tmp_path: Path) -> None:
    start_and_leave(tmp_path)
    message = refusal(tmp_path, beta=0.25, threads=4, checkpoint_minutes=1)
    assert "beta was 0.5, is 0.25" in message
    assert "threads was 2, is 4" in message
    assert "game" not in message
    assert "checkpoint_minutes" not in message
    config = config_of()
    config["environment"]["num_actions"] = 18
    with pytest.raises(UsageError, match="num_actions was 6, is 18"):
        open_run(tmp_path, config)
    assert read_config(tmp_path) == config_of()
    start_and_leave(tmp_path)  # The refusals have let the directory go.


def test_a_start_that_was_overtaken_is_refused_like_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts and ends between the first look and the lock."""

    def overtaken(*args: Any) -> Any:
        monkeypatch.undo()
        start_and_leave(tmp_path)
        return acquire_lock(*args)

    monkeypatch.setattr("ebu.run.directory.acquire_lock", overtaken)
    assert "beta was 0.5, is 0.25" in refusal(tmp_path, beta=0.25)
    assert read_config(tmp_path) == config_of()


def test_frames_may_grow_and_not_shrink(tmp_path: Path) -> None:
    start_and_leave(tmp_path)
    start_and_leave(tmp_path, frames=2000)
    assert read_config(tmp_path)["settings"]["frames"] == 2000
    message = refusal(tmp_path, frames=1999)
    assert "frames was 2000, is 1999 (may only grow)" in message
    assert read_config(tmp_path)["settings"]["frames"] == 2000


def test_values_that_print_alike_are_told_apart() -> None:
    assert differences({"size": "64"}, {"size": 64}) == ["size was '64', is 64"]


DAMAGED = {
    "empty": "",
    "cut": json.dumps(config_of())[:40],
    "a list": "[]",
    "a number": "7",
    "without settings": '{"environment": {}}',
    "settings a list": '{"settings": [], "environment": {}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_configuration_is_a_failure_and_kept(tmp_path: Path, content: str) -> None:
    start_and_leave(tmp_path)
    (tmp_path / "config.json").write_text(content)
    for attempt in (open_run, read_config):
        with pytest.raises(EbuError, match=r"config\.json cannot be read") as error:
            attempt(tmp_path)
        assert not isinstance(error.value, UsageError)
        assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_text() == content


def test_an_altered_number_that_may_grow_is_reported(tmp_path: Path) -> None:
    start_and_leave(tmp_path)
    for frames in (None, "1000", [1000]):
        write_config(tmp_path, config_of(frames=frames))
        with pytest.raises(EbuError, match="frames is"):
            open_run(tmp_path)


def test_reading_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=r"not a run directory: it (has no|does not exist)"):
            read_config(path)


def test_a_configuration_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_config(tmp_path, config_of())
    with pytest.raises(TypeError):
        write_config(tmp_path, config_of(cannot_be_json=object()))
    assert read_config(tmp_path) == config_of()


def test_a_directory_that_is_locked_is_refused_until_the_lock_is_gone(tmp_path: Path) -> None:
    start_and_leave(tmp_path)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked(tmp_path)
        assert "another process is training" in refusal(tmp_path)
    assert not is_locked(tmp_path)
    start_and_leave(tmp_path)


def test_asking_for_a_lock_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    start_and_leave(tmp_path)
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            is_locked(tmp_path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            start_and_leave(tmp_path)
    finally:
        ended.set()
        asking.join()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_as_that(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = refusal(tmp_path / "run")
    assert "has no locks" in said
    assert os.strerror(error) in said
    # Nothing else was written, and it is no other process's.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert not is_locked(tmp_path / "run")


def test_a_run_and_a_distillation_are_told_apart(tmp_path: Path) -> None:
    start_and_leave(tmp_path / "run")
    distillation = {"settings": {"students": ["net2"]}, "environment": {}}
    with pytest.raises(UsageError, match="holds a run: choose another"):
        open_run(tmp_path / "run", distillation)
    open_run(tmp_path / "out", distillation).close()
    assert "distill.py or export.py" in refusal(tmp_path / "out")
