"""Checkpoints: whole or absent, verified before use, no pickle.

A checkpoint is a directory:

    state.safetensors   every tensor and array of the state, keys joined with "/"
    state.json          the shape of the state and everything in it that is not a tensor
    …                   what the writers add (the replay memory's frames)
    manifest.json       sizes and digests of all of them, and the lengths of the logs

It is written under a hidden name and renamed when every byte of it is on the disk, so a process
killed at any moment leaves the checkpoints it had before.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ebu.errors import EbuError
from ebu.run.files import sync

FORMAT = 1
TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"

# While a checkpoint is replaced by one of the same name the earlier one keeps this suffix, under
# which it is still found and loaded.
REPLACED = ".replaced"

# json reads and writes decimal digits, of which Python converts at most 4300.
LONGEST_DECIMAL_BITS = 8192


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


def save_checkpoint(
    root: Path,
    name: str,
    state: Mapping[str, Any],
    *,
    writers: Sequence[Callable[[Path], None]] = (),
    logs: Mapping[str, int] | None = None,
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
    | keep | complete checkpoints that stay |

    Raises EbuError where the disk is full or fails: earlier checkpoints are then untouched.
    Raises TypeError, with the key, for a leaf that would not come back as it is.
    """
    if not name or name.startswith(".") or "/" in name or name.endswith(REPLACED):
        raise ValueError(f"not a name for a checkpoint: {name!r}")
    tensors, values = _split(state)
    temporary = root / f".{name}.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        try:
            temporary.mkdir()
            (temporary / TENSORS).write_bytes(safetensors.torch.save(tensors))
            (temporary / VALUES).write_bytes(json.dumps(values).encode())
            for writer in writers:
                writer(temporary)
            _write_manifest(temporary, name, dict(logs or {}))
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


def load_latest(root: Path, *, state_only: bool = False) -> Checkpoint | None:
    """Load the newest undamaged checkpoint under `root`; None where there has never been one.

    Every file is compared with its digest before anything is used. `state_only` compares the two
    state files alone and changes nothing on the disk: enough to evaluate the weights, even while
    the run is training.

    Raises EbuError where there are checkpoints and all are damaged, or they cannot be read.
    """
    try:
        if not state_only and root.is_dir():
            _remove_leftovers(root)
        directories = _newest_first(root)
    except OSError as error:
        raise EbuError(
            f"cannot read the checkpoints in {root}: {error.strerror or error}; "
            "check the path and its permissions"
        ) from error
    passed_over: list[tuple[str, str]] = []
    for directory in directories:
        try:
            logs = _verify(directory, state_only)
            state = _read_state(directory)
        except _Damaged as damage:
            passed_over.append((directory.name, str(damage)))
            continue
        except OSError as error:
            passed_over.append((directory.name, error.strerror or str(error)))
            continue
        warnings = [
            f"checkpoint {damaged} is damaged ({what}); using {directory.name}"
            for damaged, what in passed_over
        ]
        return Checkpoint(state, directory, directory.name, logs, warnings)
    if passed_over:
        reasons = ", ".join(f"{damaged}: {what}" for damaged, what in passed_over)
        raise EbuError(
            f"every checkpoint in {root} is damaged ({reasons}); put back a copy of one, "
            "or delete that directory to start again at frame 0"
        )
    return None


# --- the state as two files -----------------------------------------------------------------


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by path, and a tree in which each leaf says what it is: a list, [kind, value]."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def add(path: str, tensor: Tensor) -> None:
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # safetensors refuses two tensors that share memory.
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[path] = tensor

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key, value in node.items():
            path = f"{prefix}{key}"
            if not isinstance(key, str) or "/" in key or path == "__metadata__":
                raise TypeError(f"state key {path!r}: keys are strings without '/'")
            if isinstance(value, Mapping):
                tree[key] = walk(value, f"{path}/")
            elif isinstance(value, Tensor):
                tree[key] = ["tensor"]
                add(path, value)
            elif isinstance(value, np.ndarray):
                tree[key] = ["array"]
                add(path, _tensor_of(value, path))
            elif isinstance(value, int) and value.bit_length() > LONGEST_DECIMAL_BITS:
                tree[key] = ["hexadecimal", hex(value)]
            else:
                _check_json(value, path)
                tree[key] = ["value", value]
        return tree

    return tensors, walk(state, "")


def _tensor_of(array: np.ndarray, path: str) -> Tensor:
    try:
        # Not ascontiguousarray: it turns an array without axes into one with one.
        return torch.from_numpy(array.copy(order="C"))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"state[{path!r}]: arrays of dtype {array.dtype} cannot be saved"
        ) from error


def _check_json(value: Any, path: str) -> None:
    if isinstance(value, list | tuple):
        for element in value:
            _check_json(element, path)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            if not isinstance(key, str):
                raise TypeError(f"state[{path!r}]: keys are strings, not {key!r}")
            _check_json(element, path)
    elif isinstance(value, int) and value.bit_length() > LONGEST_DECIMAL_BITS:
        raise TypeError(f"state[{path!r}]: an integer in a list has at most 2466 digits")
    # A float32 scalar, too: it would come back as a float, and round differently.
    elif not isinstance(value, int | float | str | None):
        raise TypeError(f"state[{path!r}]: {type(value).__name__} is not a JSON value")


def _join(tensors: dict[str, Tensor], tree: Any, prefix: str = "") -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key, node in tree.items():
        path = f"{prefix}{key}"
        match node:
            case dict():
                state[key] = _join(tensors, node, f"{path}/")
            case ["tensor"]:
                state[key] = tensors[path]
            case ["array"]:
                state[key] = tensors[path].numpy()
            case ["hexadecimal", digits]:
                state[key] = int(digits, 16)
            case ["value", value]:
                state[key] = value
            case _:
                raise ValueError(f"{path}: {node!r}")
    return state


def _read_state(directory: Path) -> dict[str, Any]:
    try:
        tensors = safetensors.torch.load((directory / TENSORS).read_bytes())
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _Damaged(f"{TENSORS}: cannot be read") from error
    try:
        return _join(tensors, json.loads((directory / VALUES).read_bytes()))
    # Content with the right digest is what was written, unless the digest was altered with it.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Damaged(f"{VALUES}: cannot be read") from error


# --- the manifest ---------------------------------------------------------------------------


def _write_manifest(directory: Path, name: str, logs: dict[str, int]) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.rglob("*")):
        sync(path)
        if path.is_file():
            relative = path.relative_to(directory).as_posix()
            files[relative] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest: dict[str, Any] = {"format": FORMAT, "name": name, "files": files, "logs": logs}
    manifest["sha256"] = _digest_of_manifest(manifest)
    (directory / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode())
    sync(directory / MANIFEST)
    sync(directory)


def _verify(directory: Path, state_only: bool) -> dict[str, int]:
    """Compare the files with the manifest and return the lengths of the logs."""
    if not directory.is_dir():
        raise _Damaged("not a directory")
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise _Damaged(f"{MANIFEST}: missing") from error
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{MANIFEST}: cannot be read") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest_of_manifest(manifest):
        raise _Damaged(f"{MANIFEST}: digest differs")
    if manifest.get("format") != FORMAT:
        raise _Damaged(f"{MANIFEST}: format {manifest.get('format')!r}, not {FORMAT}")
    try:
        files = {
            str(relative): (int(file["bytes"]), str(file["sha256"]))
            for relative, file in manifest["files"].items()
        }
        logs = {str(relative): int(length) for relative, length in manifest["logs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Damaged(f"{MANIFEST}: cannot be read") from error
    if TENSORS not in files or VALUES not in files:
        raise _Damaged(f"{MANIFEST}: names no state")
    for relative, (length, digest) in files.items():
        path = directory / relative
        if state_only and relative not in (TENSORS, VALUES):
            continue
        if not path.is_file():
            raise _Damaged(f"{relative}: missing")
        if path.stat().st_size != length:
            raise _Damaged(f"{relative}: {path.stat().st_size} bytes instead of {length}")
        if _digest(path) != digest:
            raise _Damaged(f"{relative}: digest differs")
    return logs


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- directories ----------------------------------------------------------------------------


def _newest_first(root: Path) -> list[Path]:
    if not root.exists():
        return []
    paths = [path for path in root.iterdir() if not path.name.startswith(".")]
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
