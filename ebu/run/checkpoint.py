"""Checkpoints: whole or absent, verified before use, no pickle.

A checkpoint is a directory:

    state.safetensors   every tensor and array of the state, keys joined with "/"
    state.json          the shape of the state and everything in it that is not a tensor
    …                   what the writers add (the replay memory's frames)
    manifest.json       sizes and digests of all of them, the lengths of the logs, the checkpoint's
                        own name, and the settings of its run with their digest

A run of several processes has all but the manifest once for each, in rank-0/, rank-1/, ….

It is written under a hidden name and renamed when every byte of it is on the disk, so a process
killed at any moment leaves the checkpoints it had before.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebu.errors import EbuError
from ebu.run.checkpoint_manifest import (
    ForeignError,
    part_name,
    sync_files,
    verify,
    write_manifest,
)
from ebu.run.checkpoint_state import read_state, split_state, write_state
from ebu.run.files import is_there, sync
from ebu.run.ranks import SINGLE, Ranks
from ebu.run.reading import RefusedFileError, check_directory

NAME = re.compile(r"(?:(frames|updates)-[0-9]+|(states)|(trained))(?:\.replaced)?")
"""Names of checkpoints. All in a directory are of one kind: `frames` in the runs of trainings and
students, the others in distillations. Whatever else is there is left alone."""

# While a checkpoint is replaced by one of the same name the earlier one keeps this suffix, under
# which it is still found and loaded.
REPLACED = ".replaced"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    | field | meaning |
    | --- | --- |
    | state | what was given to `save_checkpoint`: tensors on the CPU, tuples as lists |
    | directory | where the writers' files lie |
    | name | name of the checkpoint |
    | logs | length in bytes of each log when the checkpoint was taken |
    | warnings | one line for each damaged checkpoint that was passed over |
    """

    state: dict[str, Any]
    directory: Path
    name: str
    logs: dict[str, int]
    warnings: list[str] = field(default_factory=list)


def save_checkpoint(
    root: Path,
    name: str,
    state: Mapping[str, Any],
    *,
    writers: Sequence[Callable[[Path], None]] = (),
    logs: Mapping[str, int] | None = None,
    run: Mapping[str, Any] | None = None,
    keep: int = 2,
    ranks: Ranks = SINGLE,
) -> Path:
    """Write the checkpoint `root/name`, whole or not at all, and return its directory.

    Names sort by time. A checkpoint of the same name is replaced; of the earlier ones the newest
    `keep - 1` stay, and later ones, which a run has fallen back from, go.

    | argument | meaning |
    | --- | --- |
    | state | nested dicts; keys are strings without "/"; leaves are tensors, arrays, JSON values |
    | writers | each is called with the directory and writes its files into it |
    | logs | length in bytes of each log at this moment, flushed and synced |
    | run | settings that make the run, JSON values: it is loaded by no other run |
    | keep | complete checkpoints that stay |
    | ranks | all of them save together, each its state; logs and run are those of the first |

    Raises EbuError where the disk is full or fails: earlier checkpoints are then untouched.
    Raises TypeError, with the key, for a leaf that would not come back as it is.
    """
    if not NAME.fullmatch(name) or name.endswith(REPLACED):
        raise ValueError(f"not a name for a checkpoint: {name!r}")
    tensors, values = split_state(state)
    temporary = root / f".{name}.{ranks.from_first(os.getpid)}.tmp"

    @_saving(root / name)
    def begin() -> None:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary.mkdir()

    @_saving(root / name)
    def write() -> dict[str, Any]:
        directory = temporary
        if not ranks.is_single:
            directory = temporary / part_name(ranks.rank)
            directory.mkdir()
        write_state(directory, tensors, values)
        for writer in writers:
            writer(directory)
        return sync_files(directory, temporary)

    @_saving(root / name)
    def publish() -> None:
        files = {path: file for part in parts for path, file in part.items()}
        write_manifest(temporary, name, files, dict(logs or {}), run, ranks.world_size)
        _publish(temporary, root / name)
        _prune(root, name, keep)

    try:
        ranks.from_first(begin)
        parts = ranks.each(write)
        ranks.from_first(publish)
    except BaseException:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return root / name


@contextlib.contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EbuError(
            f"cannot save the checkpoint {path}: {error.strerror or error}; the checkpoints "
            "before it are kept: free space or make it writable, and run the same command again"
        ) from error


def load_latest(
    root: Path,
    *,
    state_only: bool = False,
    run: Mapping[str, Any] | None = None,
    kind: str = "frames",
) -> Checkpoint | None:
    """Load the newest undamaged checkpoint under `root`; None where there has never been one.

    Every file is compared with its digest before anything is used.

    | argument | meaning |
    | --- | --- |
    | state_only | compare the two state files alone and change nothing on the disk: enough to |
    | | evaluate the weights, even while the run is training |
    | run | settings of the run that `root` belongs to; checkpoints of earlier versions have none |
    | kind | of their names: see `NAME` |

    Raises EbuError where there are checkpoints and all are damaged, or they cannot be read, and
    where the newest is of a run with other settings.
    """
    while True:
        try:
            if root.is_dir():
                check_directory(root)
            if not state_only and root.is_dir():
                _remove_leftovers(root)
            directories = _newest_first(root, kind)
            before = _snapshot(directories)
            found, passed_over = _load_first(directories, state_only, run)
            # A run that was saving meanwhile has taken away what was about to be read.
            if not passed_over or _snapshot(_newest_first(root, kind)) == before:
                break
        except (OSError, RefusedFileError) as error:
            raise EbuError(
                f"cannot read the checkpoints in {root}: "
                f"{getattr(error, 'strerror', None) or error}; check the path and its permissions"
            ) from error
    if found is not None:
        found.warnings.extend(
            f"checkpoint {damaged} is damaged ({what}); using {found.name}"
            for damaged, what in passed_over
        )
    elif passed_over:
        reasons = ", ".join(f"{damaged}: {what}" for damaged, what in passed_over)
        raise EbuError(
            f"every checkpoint in {root} is damaged ({reasons}); put back a copy of one, "
            "or start again in another directory"
        )
    return found


def load_part(root: Path, found: Checkpoint | None, ranks: Ranks) -> Checkpoint | None:
    """Each rank's part of the checkpoint under `root` that the first has found; None without one.

    Raises EbuError where a part cannot be read.
    """
    name = ranks.from_first(lambda: None if found is None else found.name)
    if name is None or ranks.is_first:
        return found
    directory = root / name / part_name(ranks.rank)
    try:
        return Checkpoint(read_state(directory), directory, name, logs={})
    except (OSError, RefusedFileError) as error:
        raise EbuError(f"{directory} cannot be read: {error}") from error


def _load_first(
    directories: Sequence[Path], state_only: bool, run: Mapping[str, Any] | None
) -> tuple[Checkpoint | None, list[tuple[str, str]]]:
    """The first checkpoint that is whole; names of those before it, and what is wrong with them."""
    passed_over: list[tuple[str, str]] = []
    for directory in directories:
        try:
            part, logs = verify(directory, directory.name.removesuffix(REPLACED), state_only, run)
            return Checkpoint(read_state(part), part, directory.name, logs), passed_over
        except RefusedFileError as damage:
            passed_over.append((directory.name, str(damage)))
        except ForeignError as foreign:
            raise EbuError(
                f"{directory} is of another run than config.json ({foreign}): restore config.json, "
                "or move the checkpoint to the directory of its own run"
            ) from foreign
        except OSError as error:
            passed_over.append((directory.name, error.strerror or str(error)))
    return None, passed_over


# --- directories ----------------------------------------------------------------------------


def _snapshot(directories: Sequence[Path]) -> list[tuple[str, int]]:
    """What tells whether checkpoints have been saved or removed: names and inodes."""
    found = []
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):
            found.append((directory.name, os.lstat(directory).st_ino))
    return found


def _kind(name: str) -> str | None:
    """The kind of a checkpoint's name; None for other names."""
    match = NAME.fullmatch(name)
    return match and match[match.lastindex or 0]


def _newest_first(root: Path, kind: str | None) -> list[Path]:
    if not is_there(root):
        return []
    paths = [path for path in root.iterdir() if _kind(path.name) == kind]
    # Of two of the same name the replaced one is the older.
    return sorted(
        paths,
        key=lambda path: (path.name.removesuffix(REPLACED), not path.name.endswith(REPLACED)),
        reverse=True,
    )


def _publish(temporary: Path, final: Path) -> None:
    """Give the finished directory its name: at every moment a complete one can be found."""
    replaced = final.with_name(final.name + REPLACED)
    if final.exists():
        _remove(replaced)
        os.replace(final, replaced)
    os.replace(temporary, final)
    sync(final.parent)


def _prune(root: Path, newest: str, keep: int) -> None:
    directories = _newest_first(root, _kind(newest))
    names = [path.name for path in directories]
    kept = [name for name in names[names.index(newest) :] if not name.endswith(REPLACED)][:keep]
    for directory in directories:
        if directory.name not in kept:
            _remove(directory)


def _remove(path: Path) -> None:
    """Take the path out of sight first: a half removed checkpoint is not met again."""
    if not path.exists():
        return
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    if hidden.is_dir():
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        hidden.unlink()


def _remove_leftovers(root: Path) -> None:
    """Remove what killed processes left behind; only the run that owns `root` may."""
    for path in root.iterdir():
        if path.name.startswith(".") and path.suffix in (".tmp", ".removed"):
            shutil.rmtree(path, ignore_errors=True)
