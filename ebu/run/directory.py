"""Run directories: their settings, and the lock that keeps other processes out."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NotRequired, TypedDict

from ebu.errors import EbuError, UsageError
from ebu.run.files import is_there, open_to_write, write_whole
from ebu.run.reading import RefusedFileError, check_directory, read_json, shorten

with contextlib.suppress(ImportError):  # missing on Windows: `acquire_lock` says so
    import fcntl

CONFIG = "config.json"
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
EVENTS = re.compile(r"events\.out\.tfevents\.(\d+).*")
"""Files of a run directory: what it was started with, and its logs."""
RELEASED = "released"
"""Entry of config.json in a folder of released weights, which holds no run: see `released`."""
LOCK = "lock"
CHECKPOINTS = "checkpoints"

AUTOMATIC: Mapping[str, Any] = {"device": "auto", "precision": "auto", "threads": 0, "num_envs": 0}
"""What leaves the choice of each setting to the program."""
_BEFORE_RECORDED = ("device", "threads")
"""Taken as automatic in runs whose config.json does not say what was."""


NOT_PART_OF_THE_RUN = frozenset(
    {"run_dir", "checkpoint_minutes", "overlap", "profile", "fresh_games"}
)
"""Settings that change nothing in what a run computes."""
_NOT_THE_IDENTITY = NOT_PART_OF_THE_RUN | {
    "device",
    "precision",
    "threads",
    "frames",
    "teacher",
    "from",
}
"""Settings that a run may change when it is resumed, and paths of others."""

MOST_ACTIONS, MOST_INPUTS = 1 << 16, 1 << 20
"""Networks have at most this many outputs and inputs."""


class Environment(TypedDict, total=False):
    """What config.json says of the environments."""

    num_actions: int
    stack: int
    frame_shape: list[int]
    frame_dtype: str
    frames_per_step: int
    observation: str
    differs: str


class Settings(TypedDict, total=False):
    """The settings in config.json that other commands than train.py read."""

    game: str
    agent: str
    preset: str
    protocol: str
    network: str
    outputs: str | None
    precision: str
    device: str
    threads: int | None
    num_envs: int | None
    seed: int
    frames: int
    epsilon_end: float
    random_start_actions: int
    life_loss_ends_segment: bool | None
    prioritized: bool
    gamma: float
    beta: float
    clip_rewards: bool
    env_args: list[str] | None
    env_wrappers: list[str] | None
    eval_max_steps: int | None
    action_set: Literal["minimal", "full"] | None


class Config(TypedDict):
    """The content of config.json."""

    settings: Settings
    environment: Environment
    automatic: NotRequired[list[str]]
    ranks: NotRequired[int]


def directory_name(game: str) -> str:
    """A game's name as part of a path: letters that every file system, make and shell takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", game).strip("-.")


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read a run's config.json: {"settings": …, "environment": …, "automatic": […]}.

    `automatic` names the settings that the program chose; earlier versions did not write it.
    `ranks` is the number of processes of a run of several.

    Raises `UsageError` if this is no run directory, `EbuError` if its config.json is damaged.
    """
    path = run_dir / CONFIG
    try:
        if not is_there(run_dir):
            raise UsageError(f"{run_dir} is not a run directory: it does not exist")
        if not is_there(path):
            lack = f"has no {CONFIG}" if run_dir.is_dir() else "is a file"
            raise UsageError(f"{run_dir} is not a run directory: it {lack}")
        check_links(run_dir)
        config = read_json(path, Config)
        _check_sizes(config["environment"])
    except (OSError, ValueError) as error:
        raise EbuError(
            f"{path} cannot be read ({error}): restore it, or start in another directory"
        ) from error
    return dict(config)


def require(run_dir: Path, entries: Mapping[str, Any], *names: str) -> None:
    """Raise `EbuError` where these entries of config.json lack a name.

    Raises `UsageError` for the output of a distillation, which has settings of its own.
    """
    for name in names:
        if name in entries:
            continue
        if _is_distillation(entries):
            raise UsageError(
                f"{run_dir} is what distill.py or export.py wrote, and no run: name a run, or a "
                f"directory in {run_dir / 'students'}"
            )
        raise EbuError(f"{run_dir / CONFIG} lacks {name}: restore it")


def _is_distillation(settings: Mapping[str, Any]) -> bool:
    return "students" in settings


def check_links(directory: Path) -> None:
    """Raise `EbuError` for a directory with links out of it, pipes or devices: see `reading`."""
    try:
        check_directory(directory)
    except (OSError, RefusedFileError) as error:
        raise EbuError(f"{directory} is refused: {error}") from error


def _check_sizes(environment: Environment) -> None:
    """Refuse numbers that would have a network of any size made, before its weights are read."""
    actions, stack = environment.get("num_actions", 1), environment.get("stack", 1)
    shape = environment.get("frame_shape", [])
    if not 1 <= actions <= MOST_ACTIONS or stack < 1 or any(side < 1 for side in shape):
        raise RefusedFileError(f"{actions} actions, {stack} frames of {shorten(shape)}")
    if len(shape) > 4 or math.prod([stack, *shape]) > MOST_INPUTS:
        raise RefusedFileError(f"frame_shape is {shorten(shape)}, and stack {stack}")


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run, by the names of its settings: a checkpoint belongs to it."""
    both = {**config["settings"], **config["environment"]}
    return {name: value for name, value in both.items() if name not in _NOT_THE_IDENTITY}


def read_earlier_config(run_dir: Path) -> dict[str, Any] | None:
    """Read the config.json of a run to resume; None without one.

    Raises as `read_config`, and `UsageError` for released weights, which cannot be resumed.
    """
    if not is_there(run_dir / CONFIG):
        return None
    config = read_config(run_dir)
    if RELEASED in config:
        raise UsageError(
            f"{run_dir} holds a released agent, without what training needs: resume its run, or "
            "choose another directory"
        )
    return config


def automatic_settings(config: Mapping[str, Any]) -> list[str]:
    """Settings that were automatic when the run of this config.json started."""
    return [name for name in config.get("automatic", _BEFORE_RECORDED) if name in AUTOMATIC]


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write config.json, whole or not at all. Raises `EbuError` where that fails."""
    write_whole(run_dir / CONFIG, json.dumps(config, indent=2).encode())


def open_run_directory(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    may_change: frozenset[str],
    may_grow: frozenset[str],
    flag: str = "--run-dir",
) -> IO[str]:
    """Create a run directory, or check that it can be resumed with these settings.

    | argument | meaning |
    | --- | --- |
    | config | as `read_config` returns |
    | may_change | settings that change nothing in the run |
    | may_grow | settings that may grow from one start to the next |
    | flag | how users name the directory |

    Returns the open lock file: while it is open no other process can train here.
    Raises `UsageError` if the path cannot hold a run, is in use, or was started with others.
    """
    if os.path.isfile(run_dir):
        raise UsageError(f"{flag} {run_dir} is a file: choose a directory")
    names: set[str] = set()
    with contextlib.suppress(OSError):
        names.update(os.listdir(run_dir))
    if CONFIG not in names and names - {LOCK, f".{CONFIG}"}:
        raise UsageError(
            f"{flag} {run_dir} holds files that are not a run's: choose another directory"
        )
    if names:
        check_links(run_dir)
    lock = acquire_lock(run_dir, flag, f"another process is training in {run_dir}")
    try:
        # Looked at again: another start may have written it since.
        if is_there(run_dir / CONFIG):
            _check(run_dir, config, may_change, may_grow, flag)
        write_config(run_dir, config)
    except (EbuError, OSError):
        lock.close()
        raise
    return lock


def acquire_lock(directory: Path, flag: str, busy: str) -> IO[str]:
    """Create a directory and keep others out of it, as long as the file returned is open.

    | argument | meaning |
    | --- | --- |
    | flag | how users name the directory |
    | busy | says what another process does there |

    Raises `UsageError` where the directory cannot be written or another process has the lock,
    `EbuError` on systems without `fcntl`.
    """
    if "fcntl" not in globals():
        raise EbuError(
            "this system has no fcntl, which locks directories: run it on Linux or macOS, or in "
            "the Windows Subsystem for Linux"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.fdopen(open_to_write(directory / LOCK, os.O_CREAT), "w")
    except OSError as error:
        raise UsageError(
            f"{flag} {directory} cannot be written: {error.strerror}; choose another directory"
        ) from error
    try:
        _take(lock)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise UsageError(f"{busy}: stop it or choose another {flag}") from None
        raise UsageError(
            f"the file system of {directory} has no locks ({error.strerror}), which keep two "
            f"processes from writing the same files: choose another {flag}, on a local disk"
        ) from error
    return lock


def _take(lock: IO[str]) -> None:
    """Lock a file; raise `BlockingIOError` if another process keeps it locked for half a second."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):  # for an instant, `is_locked` has it too
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(directory: Path) -> bool:
    """Whether another process holds the directory's lock now."""
    try:
        with (directory / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    may_change: Collection[str] = (),
    may_grow: Collection[str] = (),
) -> list[str]:
    """List what differs, in the order of the names: "beta was 0.5, is 0.7".

    `before` is as it was read from JSON. What may grow must be an integer.
    """
    # As they will read back: a tuple is a list in JSON.
    now = json.loads(json.dumps(now))
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        grows = isinstance(was, int) and isinstance(is_now, int) and is_now > was
        if was == is_now or name in may_change or (grows and name in may_grow):
            continue
        if str(was) == str(is_now):
            was, is_now = repr(was), repr(is_now)
        line = f"{name} was {was}, is {is_now}{' (may only grow)' * (name in may_grow)}"
        found.append(" ".join(line.split()))
    return found


def _check(
    run_dir: Path,
    config: Mapping[str, Any],
    may_change: frozenset[str],
    may_grow: frozenset[str],
    flag: str,
) -> None:
    before = read_config(run_dir)
    was_distillation = _is_distillation(before["settings"])
    if was_distillation != _is_distillation(config["settings"]):
        kind = "what distill.py or export.py wrote" if was_distillation else "a run"
        raise UsageError(f"{flag} {run_dir} holds {kind}: choose another directory")
    differing = differences(
        {**before["settings"], **before["environment"]},
        {**config["settings"], **config["environment"]},
        may_change=may_change,
        may_grow=may_grow,
    )
    if differing:
        raise UsageError(
            f"{run_dir} was started with other settings: {'; '.join(differing)}. "
            f"Repeat them to resume it, or choose another {flag}"
        )
