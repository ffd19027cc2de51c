"""Read weights that torch has pickled: tensors and plain values alone, nothing of it is run."""

import io
import zipfile
from typing import Any

import torch
from torch import Tensor

from ebu.run.reading import RefusedFileError

MOST_BYTES = 1 << 30
"""A file of weights, and what it holds uncompressed, is at most this large."""


def open_zip(content: bytes) -> zipfile.ZipFile:
    """An archive in memory. Raises `RefusedFileError` for what is none, or too large."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        size = sum(member.file_size for member in archive.infolist())
    # A damaged archive fails in many ways.
    except Exception as error:
        raise RefusedFileError(f"no zip archive: {error}") from None
    if size > MOST_BYTES:
        raise RefusedFileError(f"it unpacks to {size:,} bytes, and at most {MOST_BYTES:,} are read")
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive. Raises `RefusedFileError` where it is damaged or too long."""
    try:
        with archive.open(name) as file:
            content = file.read(MOST_BYTES + 1)
    except Exception as error:
        raise RefusedFileError(f"{name} in it cannot be read: {error}") from None
    if len(content) > MOST_BYTES:
        raise RefusedFileError(f"{name} in it is too long")
    return content


def load_values(content: bytes) -> Any:
    """What `torch.save` has pickled, as long as it is made of tensors and plain values.

    Raises `RefusedFileError` for anything else: it is not unpickled.
    """
    # Also refuses the format before torch 1.6, a bare pickle.
    open_zip(content)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251
    # The errors of damaged pickles have no base of their own, and torch's words are a page long.
    except Exception:
        raise RefusedFileError(
            "its pickle is damaged, or holds more than tensors and plain values, and nothing of it "
            "was run: save its weights alone, by torch.save(network.state_dict(), FILE)"
        ) from None


def check_weights(value: Any) -> dict[str, Tensor]:
    """Weights by their names, float32 and finite. Raises `RefusedFileError` for anything else."""
    if not isinstance(value, dict) or not value:
        raise RefusedFileError("it holds no weights by name")
    weights = {}
    for name, tensor in value.items():
        if not (
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and tensor.is_floating_point()
            # A small storage may pretend to be a large tensor.
            and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
        ):
            raise RefusedFileError(f"{str(name)[:60]!a} in it is no weight")
        weights[name] = tensor.detach().float()
        if not bool(weights[name].isfinite().all()):
            raise RefusedFileError(f"{name[:60]!a} in it is not finite")
    return weights
