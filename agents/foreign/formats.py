"""Recognise and read policies of other libraries by the content of their files."""

import hashlib
from dataclasses import replace
from pathlib import Path

from agents.foreign import cleanrl, function, onnx, stable_baselines
from agents.foreign.flags import PolicyFlags
from agents.foreign.pickled import MOST_BYTES, load_values, open_zip
from agents.foreign.policy import ForeignPolicy
from ebu.errors import EbuError, UsageError
from ebu.run.reading import read_file

FORMATS = (
    "a zip of Stable-Baselines3",
    "weights of CleanRL",
    "an ONNX file",
    "a function (module:function)",
)
ONNX = ".onnx"


def is_foreign(path: Path) -> bool:
    """Whether this is a policy of another library: a file, or a function. Directories are runs."""
    return path.is_file() or (not path.exists() and function.TYPED.fullmatch(str(path)) is not None)


def has_layers(path: Path) -> bool:
    """Whether this is a file of weights: no run, and no ONNX file or function, which have none."""
    return path.is_file() and path.suffix != ONNX


def read_policy(path: Path, flags: PolicyFlags) -> ForeignPolicy:
    """The policy in a file, or the one that a function computes.

    Raises `UsageError` for an unknown format and for a function that cannot be imported,
    `EbuError`, one line, for a file that is damaged or holds another kind of policy.
    """
    if not path.is_file():
        return function.read(str(path), flags.policy_outputs)
    try:
        content = read_file(path, MOST_BYTES)
        policy = _read(path, content, flags)
    except (OSError, ValueError) as error:
        raise EbuError(f"{path} is refused: {error}") from error
    if flags.policy_outputs not in (None, policy.outputs):
        raise UsageError(f"{path} gives {policy.outputs}: leave out --policy-outputs")
    return replace(policy, digest=hashlib.sha256(content).hexdigest())


def _read(path: Path, content: bytes, flags: PolicyFlags) -> ForeignPolicy:
    name = str(path)
    if path.suffix == ONNX:
        return onnx.read(name, content, flags.policy_outputs, unit_pixels=flags.unit_pixels)
    if flags.unit_pixels:
        raise UsageError(f"--unit-pixels is for ONNX files, and {path} is none: leave it out")
    if not content.startswith(b"PK"):
        raise UsageError(f"{path} is no run directory and none of: {', '.join(FORMATS)}")
    archive = open_zip(content)
    if stable_baselines.is_ours(archive):
        return stable_baselines.read(name, archive)
    return cleanrl.read(name, load_values(content))
