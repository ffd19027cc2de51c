"""The state of a checkpoint as two files: tensors, and a tree of everything else."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ebu.host_memory import available_bytes
from ebu.run.reading import RefusedFileError, read_file, read_json

TENSORS, VALUES = "state.safetensors", "state.json"

# Where the free memory is not known.
MOST_TENSOR_BYTES = 64 << 30

# json reads and writes decimal digits, of which Python converts at most 4300.
LONGEST_DECIMAL_BITS = 8192


def write_state(directory: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write both files of what `split_state` gave."""
    (directory / TENSORS).write_bytes(safetensors.torch.save(tensors))
    (directory / VALUES).write_bytes(json.dumps(values).encode())


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def read_state(directory: Path) -> dict[str, Any]:
    """The state in both files. Raises `RefusedFileError` where they cannot be read."""
    tensors = read_tensors(directory / TENSORS)
    try:
        return _join(tensors, read_json(directory / VALUES, finite=False))
    # Content with the right digest is what was written, unless the digest was altered with it.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedFileError(f"{VALUES}: cannot be read") from error


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file of at most the free memory, by their names.

    Raises `OSError` where it cannot be opened, `RefusedFileError` where it is damaged or, if
    `sha256` is given, has another digest.
    """
    free = available_bytes(torch.device("cpu"))
    content = read_file(path, MOST_TENSOR_BYTES if free is None else free)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise RefusedFileError(f"{path.name}: digest differs")
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise RefusedFileError(f"{path.name}: cannot be read") from error
