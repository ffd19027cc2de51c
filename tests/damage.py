"""Files altered in many ways: by the disk, by hand, and by somebody who means it."""

import copy
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOW = ("flip", "cut", "empty", "insert", "swap", "link", "device", "pipe", "directory", "gone")
"""The ways that suit every file."""
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "pong", "a\nb", "\x00", "\ud800", "ε", "../..", "-x"),
    *("9" * 500, "0x10", "1e400", [], {}, [[]], [None], [1, 2, 3], [-1], {"": 1}, ["tensor"]),
    *(["value", 1], ["array"], ["hexadecimal", "0x"], [[1] * 70] * 3, "frames.zst", "module:Env"),
    *("9999-9999-9999/9999", "impala9999", 2**31 - 1, 10**9, [2**20], [1024, 1024]),
]
"""Values that no setting expects, or only as what would take all memory."""


MEMORY = Path("/dev/shm")
ROOM = 1 << 30


def quick_directory() -> "tempfile.TemporaryDirectory[str]":
    """A temporary directory, in memory where there is room: a disk is slow to sync."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    return tempfile.TemporaryDirectory(dir=MEMORY if in_memory else None)


def damage(
    path: Path, how: str, others: list[Path], rng: random.Random, outside: Path | None = None
) -> None:
    """Alter a file in one of these ways, or as `json`; a link leads to `outside` if it is given."""
    content = path.read_bytes()
    position = rng.randrange(len(content) + 1)
    match how:
        case "flip":
            altered = bytearray(content)
            for _ in range(rng.choice((1, 1, 8))):
                if altered:
                    altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
            path.write_bytes(altered)
        case "cut":
            path.write_bytes(content[:position])
        case "empty":
            path.write_bytes(b"")
        case "insert":
            odd = rng.choice((b"\x00", b"\xff\xfe", b"[" * 100_000, b'"', b"\n", rng.randbytes(9)))
            path.write_bytes(content[:position] + odd + content[position:])
        case "swap":
            path.write_bytes(rng.choice(others).read_bytes())
        case "json":
            path.write_bytes(altered_json(content, rng, log=path.suffix == ".jsonl"))
        case _:
            path.unlink()
            match how:
                case "link":
                    path.symlink_to(
                        outside or rng.choice(("/etc/passwd", "/nowhere", "..", path.name))
                    )
                case "device":
                    path.symlink_to("/dev/zero")
                case "pipe":
                    os.mkfifo(path)
                case "directory":
                    path.mkdir()


def restore(path: Path, content: bytes) -> None:
    """Make a damaged file whole again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)


def altered_json(content: bytes, rng: random.Random, *, log: bool) -> bytes:
    """JSON, or lines of it, with a value replaced, a key lost, or a key more."""
    lines = content.splitlines() if log else [content]
    if not lines:
        return rng.randbytes(9)
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    for _ in range(rng.choice((1, 1, 2))):
        nodes = [node for node in _nodes(value) if node]
        if not nodes:
            break
        node = rng.choice(nodes)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node, dict) and rng.random() < 0.15:
            del node[key]
        elif rng.random() < 0.2:
            node[key] = [node[key]]
        else:
            node[key] = copy.deepcopy(rng.choice(ODD))
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def _nodes(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _nodes(inner)
