"""Checkpoints: whole or absent, verified before use, no pickle.

A checkpoint is a directory:

    state.safetensors   every tensor and array of the state, keys joined with "/"
    state.json          the shape of the state and everything in it that is not a tensor
    …                   what the writers add (the replay memory's frames)
    manifest.json       sizes and digests of all of them, the lengths of the logs, the checkpoint's
                        own name, and the settings of its run with their digest

It is written under a hidden name and renamed when every byte of it is on the disk, so a process
killed at any moment leaves the checkpoints it had before.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ebu.errors import EbuError
from ebu.run.checkpoint_state import TENSORS, VALUES, read_state, split_state, write_state
from ebu.run.directory import differences
from ebu.run.files import sync
from ebu.run.reading import (
    RefusedFileError,
    check_directory,
    check_fits,
    open_file,
    read_json,
    shorten,
)

FORMAT = 1
NAME = re.compile(r"(?:(?:frames|updates)-[0-9]+|states|trained)(?:\.replaced)?")
"""Names of checkpoints; whatever else is in their directory is left alone."""
MANIFEST = "manifest.json"

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
    | name | name of the directory |
    | logs | length in bytes of each log when the checkpoint was taken |
    | warnings | one line for each damaged checkpoint that was passed over |
    """

    state: dict[str, Any]
    directory: Path
    name: str
    logs: dict[str, int]
    warnings: list[str] = field(default_factory=list)


class _Damaged(Exception):
    """What is wrong with a checkpoint, in a few words."""


class _Foreign(Exception):
    """How the settings of a whole checkpoint differ from those of the run it lies in."""


def save_checkpoint(
    root: Path,
    name: str,
    state: Mapping[str, Any],
    *,
    writers: Sequence[Callable[[Path], None]] = (),
    logs: Mapping[str, int] | None = None,
    run: Mapping[str, Any] | None = None,
    keep: int = 2,
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

    Raises EbuError where the disk is full or fails: earlier checkpoints are then untouched.
    Raises TypeError, with the key, for a leaf that would not come back as it is.
    """
    if not NAME.fullmatch(name) or name.endswith(REPLACED):
        raise ValueError(f"not a name for a checkpoint: {name!r}")
    tensors, values = split_state(state)
    temporary = root / f".{name}.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        try:
            temporary.mkdir()
            write_state(temporary, tensors, values)
            for writer in writers:
                writer(temporary)
            _write_manifest(temporary, name, dict(logs or {}), run)
            _publish(temporary, root / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _prune(root, name, keep)
    except OSError as error:
        raise EbuError(
            f"cannot save the checkpoint {root / name}: {error.strerror or error}; the checkpoints "
            "before it are kept: free space or make it writable, and run the same command again"
        ) from error
    return root / name


def load_latest(
    root: Path, *, state_only: bool = False, run: Mapping[str, Any] | None = None
) -> Checkpoint | None:
    """Load the newest undamaged checkpoint under `root`; None where there has never been one.

    Every file is compared with its digest before anything is used.

    | argument | meaning |
    | --- | --- |
    | state_only | compare the two state files alone and change nothing on the disk: enough to |
    | | evaluate the weights, even while the run is training |
    | run | settings of the run that `root` belongs to; checkpoints of earlier versions have none |

    Raises EbuError where there are checkpoints and all are damaged, or they cannot be read, and
    where the newest is of a run with other settings.
    """
    while True:
        try:
            if root.is_dir():
                check_directory(root)
            if not state_only and root.is_dir():
                _remove_leftovers(root)
            directories = _newest_first(root)
            before = _snapshot(directories)
            found, passed_over = _load_first(directories, state_only, run)
            # A run that was saving meanwhile has taken away what was about to be read.
            if not passed_over or _snapshot(_newest_first(root)) == before:
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
            "or delete that directory to start again at frame 0"
        )
    return found


def _load_first(
    directories: Sequence[Path], state_only: bool, run: Mapping[str, Any] | None
) -> tuple[Checkpoint | None, list[tuple[str, str]]]:
    """The first checkpoint that is whole; names of those before it, and what is wrong with them."""
    passed_over: list[tuple[str, str]] = []
    for directory in directories:
        try:
            logs = _verify(directory, state_only, run)
            state = read_state(directory)
            return Checkpoint(state, directory, directory.name, logs), passed_over
        except (_Damaged, RefusedFileError) as damage:
            passed_over.append((directory.name, str(damage)))
        except _Foreign as foreign:
            raise EbuError(
                f"{directory} is a checkpoint of another run ({foreign}): move it away, or load it "
                "in the directory of its own run"
            ) from foreign
        except OSError as error:
            passed_over.append((directory.name, error.strerror or str(error)))
    return None, passed_over


# --- the manifest ---------------------------------------------------------------------------


class _File(TypedDict):
    bytes: int
    sha256: str


class _Run(TypedDict):
    sha256: str
    settings: dict[str, Any]


class _Manifest(TypedDict):
    name: str
    files: dict[str, _File]
    logs: dict[str, int]
    run: NotRequired[_Run]


def _write_manifest(
    directory: Path, name: str, logs: dict[str, int], run: Mapping[str, Any] | None
) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.rglob("*")):
        sync(path)
        if path.is_file():
            relative = path.relative_to(directory).as_posix()
            files[relative] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest: dict[str, Any] = {"format": FORMAT, "name": name, "files": files, "logs": logs}
    if run is not None:
        manifest["run"] = {"sha256": _digest_of(run), "settings": dict(run)}
    manifest["sha256"] = _digest_of(manifest)
    (directory / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode())
    sync(directory / MANIFEST)
    sync(directory)


def _verify(directory: Path, state_only: bool, run: Mapping[str, Any] | None) -> dict[str, int]:
    """Compare the files with the manifest and return the lengths of the logs."""
    if directory.is_symlink() or not directory.is_dir():
        raise _Damaged("not a directory")
    try:
        manifest = read_json(directory / MANIFEST)
    except FileNotFoundError as error:
        raise _Damaged(f"{MANIFEST}: missing") from error
    except RefusedFileError as error:
        raise _Damaged(f"{MANIFEST}: cannot be read, {error}") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest_of(
        {key: value for key, value in manifest.items() if key != "sha256"}
    ):
        raise _Damaged(f"{MANIFEST}: digest differs")
    if manifest.get("format") != FORMAT:
        raise _Damaged(f"{MANIFEST}: format {shorten(manifest.get('format'))}, not {FORMAT}")
    check_fits(manifest, _Manifest, MANIFEST)
    files, logs = manifest["files"], manifest["logs"]
    if TENSORS not in files or VALUES not in files:
        raise _Damaged(f"{MANIFEST}: names no state")
    if manifest["name"] != directory.name.removesuffix(REPLACED):
        raise _Damaged(f"{MANIFEST}: it is a copy of {shorten(manifest['name'])}")
    for relative, file in files.items():
        path = directory / relative
        if ".." in Path(relative).parts or Path(relative).is_absolute():
            raise _Damaged(f"{MANIFEST}: names {shorten(relative)}")
        if state_only and relative not in (TENSORS, VALUES):
            continue
        if not path.is_file():
            raise _Damaged(f"{relative}: missing")
        if path.stat().st_size != file["bytes"]:
            raise _Damaged(f"{relative}: {path.stat().st_size} bytes instead of {file['bytes']}")
        if _digest(path) != file["sha256"]:
            raise _Damaged(f"{relative}: digest differs")
    if run is not None and "run" in manifest:
        _compare_runs(manifest["run"], run)
    return dict(logs)


def _compare_runs(of_checkpoint: _Run, run: Mapping[str, Any]) -> None:
    """Raise `_Foreign` unless they agree: later versions may have further settings."""
    settings = of_checkpoint["settings"]
    if of_checkpoint["sha256"] != _digest_of(settings):
        raise _Damaged(f"{MANIFEST}: digest of its settings differs")
    both = settings.keys() & run.keys()
    differing = differences(
        {name: settings[name] for name in both}, {name: run[name] for name in both}
    )
    if differing:
        raise _Foreign("; ".join(each[:100] for each in differing[:4]))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# --- directories ----------------------------------------------------------------------------


def _snapshot(directories: Sequence[Path]) -> list[tuple[str, int]]:
    """What tells whether checkpoints have been saved or removed: names and inodes."""
    found = []
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):
            found.append((directory.name, os.lstat(directory).st_ino))
    return found


def _newest_first(root: Path) -> list[Path]:
    if not os.path.lexists(root):
        return []
    paths = [path for path in root.iterdir() if NAME.fullmatch(path.name)]
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
    directories = _newest_first(root)
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
