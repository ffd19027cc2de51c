"""The frames of a replay memory on disk: chunks of one stream's frames, compressed.

A chunk holds consecutive frames of one stream, of which most repeat most of the frame
before. `frames.zst` is one Zstandard frame after the other, each with its checksum;
`frames.json` says what lies where. Storing differences between frames instead was
measured on eleven games: larger files on ten of them.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from ebu.errors import EbuError
from ebu.run.reading import check_fits, open_file, read_json

_DATA = "frames.zst"
_INDEX = "frames.json"
_FORMAT = "ebu-replay-frames-2"
_LEVEL = 1
# Bytes of a chunk before compression: large enough to compress well, small enough that
# the few in flight are small against the memory itself.
_CHUNK_BYTES = 2 << 20


def write_frames(directory: Path, ring: Tensor, first: int, end: int) -> None:
    """Write the frames of steps first to end − 1, which lie in slots step mod L.

    ring: (L, N, *frame_shape). Needs little memory whatever the size of the ring.
    """
    chunks = list(_chunks(ring, first, end))
    sizes: list[int] = []
    workers = max(1, min(8, os.cpu_count() or 1))
    with (
        (directory / _DATA).open("wb") as file,
        ThreadPoolExecutor(workers, thread_name_prefix="replay-frames") as pool,
    ):
        in_flight: deque[Future[bytes]] = deque()
        try:
            for chunk in chunks:
                in_flight.append(pool.submit(_compress, ring, *chunk))
                if len(in_flight) > 2 * workers:
                    sizes.append(file.write(in_flight.popleft().result()))
            while in_flight:
                sizes.append(file.write(in_flight.popleft().result()))
        finally:
            for future in in_flight:
                future.cancel()
    index = {
        "format": _FORMAT,
        **_layout(ring, first, end),
        "chunks": [[*chunk, size] for chunk, size in zip(chunks, sizes, strict=True)],
    }
    (directory / _INDEX).write_text(json.dumps(index))


def read_frames(directory: Path, ring: Tensor, first: int, end: int) -> None:
    """Fill the ring with what `write_frames` wrote for the same steps.

    EbuError if files are missing, short, altered, or of another memory or another step.
    """
    try:
        index = read_json(directory / _INDEX)
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']}")
        for key, value in _layout(ring, first, end).items():
            if index[key] != value:
                raise ValueError(f"{key} is {index[key]}, expected {value}")
        chunks = list(_chunks(ring, first, end))
        if [chunk[:3] for chunk in index["chunks"]] != [list(chunk) for chunk in chunks]:
            raise ValueError("its list of chunks is not whole")
        sizes = [size for *_, size in index["chunks"]]
        check_fits(sizes, list[int], "the chunks' sizes")
        with open_file(directory / _DATA) as file:
            left = os.fstat(file.fileno()).st_size
            # Not by the numbers of the file, where true equals 1 and means something else.
            for (stream, step, count), size in zip(chunks, sizes, strict=True):
                if not 0 <= size <= left:
                    raise ValueError(f"{_DATA} is too short")
                data = file.read(size)
                left -= size
                _decompress(data, ring, stream, step, count)
            if file.read(1):
                raise ValueError(f"{_DATA} is too long")
    except (OSError, ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EbuError(f"the replay frames in {directory} cannot be read: {reason}") from error


def _chunks(ring: Tensor, first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(stream, first step, number of frames) of every chunk, stream by stream."""
    frame_bytes = ring[0, 0].numel() * ring.element_size()
    frames = max(1, _CHUNK_BYTES // frame_bytes)
    for stream in range(ring.shape[1]):
        for step in range(first, end, frames):
            yield stream, step, min(frames, end - step)


def _layout(ring: Tensor, first: int, end: int) -> dict[str, Any]:
    return {
        "ring_length": ring.shape[0],
        "num_streams": ring.shape[1],
        "frame_shape": list(ring.shape[2:]),
        "frame_dtype": str(ring.dtype),
        "first_step": first,
        "end_step": end,
    }


def _compress(ring: Tensor, stream: int, step: int, count: int) -> bytes:
    pieces = _pieces(ring, stream, step, count)
    frames = torch.cat([piece.cpu() for piece in pieces]).numpy()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return compressor.compress(frames.data)


def _decompress(data: bytes, ring: Tensor, stream: int, step: int, count: int) -> None:
    expected = count * ring[0, 0].numel() * ring.element_size()
    # Before anything is allocated: a few kilobytes can stand for gigabytes.
    declared = zstandard.frame_content_size(data)
    if declared != expected:
        raise ValueError(f"a chunk holds {declared} bytes, expected {expected}")
    raw = bytearray(zstandard.ZstdDecompressor().decompress(data))
    frames = torch.frombuffer(raw, dtype=ring.dtype).view(count, *ring.shape[2:])
    for piece in _pieces(ring, stream, step, count):
        piece.copy_(frames[: len(piece)])
        frames = frames[len(piece) :]


def _pieces(ring: Tensor, stream: int, step: int, count: int) -> list[Tensor]:
    """Views of a chunk's frames in the ring: two where it wraps."""
    start = step % ring.shape[0]
    end = start + count
    if end <= ring.shape[0]:
        return [ring[start:end, stream]]
    return [ring[start:, stream], ring[: end - ring.shape[0], stream]]
