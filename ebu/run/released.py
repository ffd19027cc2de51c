"""Weights of a released agent: one safetensors file, and what config.json says of it.

A folder for a model hub has a run's config.json with one entry more, `released`, and no
checkpoints: it plays and is scored like a run, and is not trained further.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import safetensors.torch
from torch import Tensor

from ebu.run.checkpoint_state import read_tensors, split_state
from ebu.run.directory import RELEASED
from ebu.run.files import write_whole
from ebu.run.reading import check_fits

WEIGHTS_FILE = "model.safetensors"


class Released(TypedDict):
    """What config.json says of released weights.

    | key | meaning |
    | --- | --- |
    | weights | which of the run's: those of its newest checkpoint, or of its best evaluation |
    | frames | emulator frames they were trained on |
    | sha256 | digest of their file |
    | temperature | of the logits of a student that was trained alongside its teacher |
    """

    weights: Literal["final", "best"]
    frames: int
    sha256: str
    temperature: NotRequired[float]


def released_in(config: Mapping[str, Any]) -> Released | None:
    """What a config.json says of released weights; None for that of a run.

    Raises `RefusedFileError` where it is damaged.
    """
    if RELEASED not in config:
        return None
    check_fits(config[RELEASED], Released, RELEASED)
    released: Released = config[RELEASED]
    return released


def write_weights(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    which: Literal["final", "best"],
    frames: int,
) -> Released:
    """Write a network's weights by their names; returns what config.json is to say of them.

    Raises `EbuError` where the disk is full or fails.
    """
    # Made contiguous, and none shares memory with another.
    tensors, _ = split_state(weights)
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_whole(folder / WEIGHTS_FILE, content)
    return {"weights": which, "frames": frames, "sha256": hashlib.sha256(content).hexdigest()}


def read_weights(folder: Path, released: Released) -> dict[str, Tensor]:
    """The weights by their names.

    Raises `RefusedFileError`, or `OSError`, where there are none or they are not those described.
    """
    return read_tensors(folder / WEIGHTS_FILE, sha256=released["sha256"])
