"""The manifest of a checkpoint: what belongs to it, and whether all of it is there as written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ebu.run.checkpoint_state import TENSORS, VALUES
from ebu.run.directory import differences
from ebu.run.files import sync
from ebu.run.reading import RefusedFileError, check_fits, open_file, read_json, shorten
from ebu.state_checks import require

FORMAT = 1
MANIFEST = "manifest.json"


class ForeignError(Exception):
    """How the settings of a whole checkpoint differ from those of the run it lies in."""


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
    ranks: NotRequired[int]
    run: NotRequired[_Run]


def sync_files(part: Path, root: Path) -> dict[str, Any]:
    """Bring all files of a part to the disk; sizes and digests by their paths in the root."""
    files: dict[str, Any] = {}
    for path in sorted(part.rglob("*")):
        sync(path)
        if path.is_file():
            relative = path.relative_to(root).as_posix()
            files[relative] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    if part != root:
        sync(part)
    return files


def write_manifest(
    directory: Path,
    name: str,
    files: dict[str, Any],
    logs: dict[str, int],
    run: Mapping[str, Any] | None,
    ranks: int,
) -> None:
    """Write the manifest, the last file of a checkpoint, and bring it to the disk."""
    manifest: dict[str, Any] = {"format": FORMAT, "name": name, "files": files, "logs": logs}
    if ranks > 1:
        manifest["ranks"] = ranks
    if run is not None:
        manifest["run"] = {"sha256": _digest_of(run), "settings": dict(run)}
    manifest["sha256"] = _digest_of(manifest)
    (directory / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode())
    sync(directory / MANIFEST)
    sync(directory)


def part_name(rank: int) -> str:
    """The directory of a rank's files in the checkpoint of a run of several."""
    return f"rank-{rank}"


def verify(
    directory: Path, name: str, state_only: bool, run: Mapping[str, Any] | None
) -> tuple[Path, dict[str, int]]:
    """Compare the files of the checkpoint `name` with its manifest.

    `state_only`, `run`: as in `load_latest`. Returns where the first rank's files lie, and the
    lengths of the logs. Raises `RefusedFileError`, in a few words, for what is damaged, otherwise
    `ForeignError`, or as `open_file`.
    """
    require(not directory.is_symlink() and directory.is_dir(), "not a directory")
    try:
        manifest = read_json(directory / MANIFEST)
    except FileNotFoundError as error:
        raise RefusedFileError(f"{MANIFEST}: missing") from error
    except RefusedFileError as error:
        raise RefusedFileError(f"{MANIFEST}: cannot be read, {error}") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest_of(
        {key: value for key, value in manifest.items() if key != "sha256"}
    ):
        raise RefusedFileError(f"{MANIFEST}: digest differs")
    format_ = manifest.get("format")
    require(format_ == FORMAT, f"{MANIFEST}: format {shorten(format_)}, not {FORMAT}")
    check_fits(manifest, _Manifest, MANIFEST)
    files, logs = manifest["files"], manifest["logs"]
    ranks = manifest.get("ranks", 1)
    parts = [Path()]
    if ranks > 1:
        parts = [Path(part_name(rank)) for rank in range(min(ranks, len(files) + 1))]
    states = [str(part / file) for part in parts for file in (TENSORS, VALUES)]
    require(files.keys() >= set(states), f"{MANIFEST}: names no state")
    own = manifest["name"]
    require(own == name, f"{MANIFEST}: it is a copy of {shorten(own)}")
    for relative, file in files.items():
        path, written = directory / relative, file["bytes"]
        inside = ".." not in Path(relative).parts and not Path(relative).is_absolute()
        require(inside, f"{MANIFEST}: names {shorten(relative)}")
        if state_only and relative not in states[:2]:
            continue
        require(path.is_file(), f"{relative}: missing")
        size = path.stat().st_size
        require(size == written, f"{relative}: {size} bytes instead of {written}")
        require(_digest(path) == file["sha256"], f"{relative}: digest differs")
    if run is not None and "run" in manifest:
        _compare_runs(manifest["run"], run)
    return directory / parts[0], dict(logs)


def _compare_runs(of_checkpoint: _Run, run: Mapping[str, Any]) -> None:
    """Raise `ForeignError` unless they agree: later versions may have further settings."""
    settings = of_checkpoint["settings"]
    same = of_checkpoint["sha256"] == _digest_of(settings)
    require(same, f"{MANIFEST}: digest of its settings differs")
    both = settings.keys() & run.keys()
    differing = differences(
        {name: settings[name] for name in both}, {name: run[name] for name in both}
    )
    if differing:
        raise ForeignError("; ".join(each[:100] for each in differing[:4]))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
