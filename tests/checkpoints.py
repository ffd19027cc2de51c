"""Checkpoints that somebody has altered on purpose, digests and all."""

import hashlib
import json
import math
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def reseal(directory: Path, **changes: Any) -> None:
    """Write a manifest whose digests agree with whatever is there, with changed entries.

    Entries that become None are left out.
    """
    manifest = json.loads((directory / "manifest.json").read_text())
    for relative in manifest["files"]:
        content = (directory / relative).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][relative] = {"bytes": len(content), "sha256": digest}
    manifest = {key: value for key, value in (manifest | changes).items() if value is not None}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}))


ODD_LEAVES: list[Any] = [
    *(None, True, -1, 0, 1, 10**9, 10**30, -(10**30), -0.5, 0.5, 1e300, math.nan, math.inf),
    *("x", "", [], [[]], [300, 0], [math.inf, 0], [[1.0]], {}, {"value": 1}),
]
"""Values that hardly any leaf of a state may have."""


def alter_state(directory: Path, rng: random.Random) -> str:
    """Give a leaf of a checkpoint's state another value, with the right digests; returns which.

    Tensors get other numbers, shapes or types.
    """
    tensors = load_file(directory / "state.safetensors")
    tree = json.loads((directory / "state.json").read_text())
    path, leaf = rng.choice(list(leaves(tree)))
    if leaf[0] in ("tensor", "array") and rng.random() < 0.8:
        tensors[path], value = _altered(tensors[path], rng)
        save_file(tensors, directory / "state.safetensors")
    else:
        value = rng.choice(ODD_LEAVES)
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value if isinstance(value, dict) else ["value", value]
        (directory / "state.json").write_text(json.dumps(tree))
    reseal(directory)
    return f"{path}: {value!r}"


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of state.json by its path, which names its tensor if it is one."""
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", node


def _altered(tensor: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    how = rng.choice(("first", "all", "all", "longer", "shorter", "flat", "type", "one"))
    number: float = rng.choice((0, 1, -1, 7, 200, 2**31 - 1, math.nan, math.inf, 1e30))
    altered = tensor.clone()
    match how:
        case "longer":
            altered = torch.cat([tensor.reshape(-1)] * 2)
        case "shorter":
            altered = tensor[1:].clone() if tensor.dim() else tensor
        case "flat":
            altered = tensor.reshape(-1, 1)
        case "type":
            altered = tensor.to(rng.choice((torch.float64, torch.int16, torch.uint8, torch.bool)))
        case "one":
            altered = torch.zeros(())
        case _:
            with suppress(RuntimeError, OverflowError):
                altered.reshape(-1)[: 1 if how == "first" else None] = number
    return altered.contiguous(), f"{how} {number}"
