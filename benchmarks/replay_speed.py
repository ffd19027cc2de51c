"""What the replay memory costs: appending, drawing, gathering, and the memory of the process.

    python -m benchmarks.replay_speed --json replay.json

A full memory of `RECORDED_STEPS` vector steps of an Atari game under random actions, repeated;
where segments and games end is drawn. Parts are timed call by call, by default on one thread.

The results file holds `microseconds` (`median` and `p95` of `append`, one vector step; `draw`, the
indices of 32 transitions; `draw_states`, with the stacks they start from; `draw_states_and_next`,
with both; `draw_segment`, the place of a segment), `memory` (`transitions`
and `segments` stored, `fill_seconds`, and in bytes the largest resident size of the process
before the memory was made, `resident_before`, and of all, `peak_resident`; on a GPU also
`peak_device`) and with `--checkpoint` the `seconds` of `write_frames` and `read_frames` and the
`bytes` on disk in `checkpoint`.
"""

import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measurement import (
    WARMUP_CALLS,
    DeviceSettings,
    GameSettings,
    median_and_p95,
    run_benchmark,
    say,
    times,
)
from benchmarks.runs import BATCH_SIZE
from ebu.frames import torch_dtype
from ebu.replay import EpisodicReplay
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.settings import Positive
from envs import AtariVector

# 1.8 MB of each stream, more than the compression of checkpoints looks back.
RECORDED_STEPS = 256
# As in a game of five lives of a hundred agent steps each.
STEPS_PER_SEGMENT = 100
SEGMENTS_PER_GAME = 5

Row = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Settings(GameSettings, DeviceSettings):
    """What is measured."""

    game: str = "breakout"
    """An Atari game."""
    replay_capacity: Positive = 1_000_000
    """Transitions in the replay memory."""
    num_envs: Positive = 64
    """Environment streams; an append stores one frame of each."""
    repetitions: Positive = 2_000
    """Timed calls of each part."""
    checkpoint: bool = False
    """Also write and read all frames once, as a checkpoint does, in the temporary directory."""


def record_frames(settings: Settings) -> np.ndarray:
    """(RECORDED_STEPS, N, 84, 84) uint8: N games under random actions."""
    env = AtariVector(settings.game, settings.num_envs, seed=settings.seed)
    rng = np.random.default_rng(settings.seed)
    frames = np.empty((RECORDED_STEPS, settings.num_envs, *env.frame_shape), dtype=env.frame_dtype)
    frames[0] = env.reset().frames
    for step in range(1, RECORDED_STEPS):
        env.send(rng.integers(env.num_actions, size=settings.num_envs))
        frames[step] = env.recv().frames
    env.close()
    return frames


def rows_of(frames: np.ndarray, rng: np.random.Generator) -> Iterator[Row]:
    """The arguments of one append after the other, without end."""
    num_envs: int = frames.shape[1]
    never = np.zeros(num_envs, dtype=bool)
    started = ~never
    step = 0
    while True:
        terminated = ~started & (rng.random(num_envs) < 1 / STEPS_PER_SEGMENT)
        yield (
            frames[step % len(frames)],
            rng.integers(4, size=num_envs),
            (rng.random(num_envs) < 0.1).astype(np.float32),
            terminated,
            never,
            started,
            np.full(num_envs, 0.25, dtype=np.float32),
        )
        started = terminated & (rng.random(num_envs) < 1 / SEGMENTS_PER_GAME)
        step += 1


def peak_resident() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_parts(
    replay: EpisodicReplay, rows: Iterator[Row], rng: np.random.Generator, repetitions: int
) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each part, in microseconds."""

    def draw(*stacks: str) -> None:
        places = replay.transitions.draw(rng, BATCH_SIZE)
        if stacks:
            batch = replay.read(*places)
            for name in stacks:
                getattr(batch, name)

    next_rows = list(islice(rows, WARMUP_CALLS + repetitions))
    seconds = {"append": times(replay.append, repetitions, replay.device, next_rows)}
    parts: dict[str, Callable[[], object]] = {
        "draw": draw,
        "draw_states": partial(draw, "states"),
        "draw_states_and_next": partial(draw, "states", "next_states"),
        "draw_segment": partial(replay.segments.draw, rng),
    }
    for name, part in parts.items():
        say(f"timing {name}")
        seconds[name] = times(part, repetitions, replay.device)
    return {
        name: median_and_p95([1e6 * value for value in values]) for name, values in seconds.items()
    }


def time_checkpoint(replay: EpisodicReplay) -> dict[str, Any]:
    """Write all frames to a temporary directory and read them back, from the system's cache."""
    say("writing and reading all frames")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        started = time.perf_counter()
        replay.write_frames(directory)
        written = time.perf_counter()
        replay.read_frames(directory)
        read = time.perf_counter()
        size = sum(file.stat().st_size for file in directory.iterdir())
    seconds = {"write_frames": written - started, "read_frames": read - written}
    return {"seconds": seconds, "bytes": size}


def measure(settings: Settings) -> dict[str, Any]:
    """All figures. Raises `UsageError` if the memory does not fit."""
    device = settings.prepare()
    say("playing")
    frames = record_frames(settings)
    resident_before = peak_resident()
    replay = EpisodicReplay(
        capacity=settings.replay_capacity,
        num_streams=settings.num_envs,
        frame_shape=frames.shape[2:],
        frame_dtype=torch_dtype(frames.dtype),
        stack=AtariVector.stack,
        device=device,
    )
    rng = np.random.default_rng(settings.seed)
    rows = rows_of(frames, rng)
    say(f"filling a memory of {settings.replay_capacity:,} transitions")
    started = time.perf_counter()
    # One step more than the memory holds, so that every append overwrites.
    for row in islice(rows, math.ceil(settings.replay_capacity / settings.num_envs) + 1):
        replay.append(*row)
    fill_seconds = time.perf_counter() - started
    figures: dict[str, Any] = {"microseconds": time_parts(replay, rows, rng, settings.repetitions)}
    if settings.checkpoint:
        figures["checkpoint"] = time_checkpoint(replay)
    figures["memory"] = {
        "transitions": len(replay.transitions),
        "segments": len(replay.segments),
        "fill_seconds": fill_seconds,
        "resident_before": resident_before,
        "peak_resident": peak_resident(),
    }
    if device.type == "cuda":
        figures["memory"]["peak_device"] = torch.cuda.max_memory_allocated(device)
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        (part.replace("_", " "), f"{value['median']:.1f}", f"{value['p95']:.1f}")
        for part, value in figures["microseconds"].items()
    ]
    memory, written = figures["memory"], figures.get("checkpoint")
    lines = [
        markdown.table(("part", "median, µs", "95th percentile, µs"), rows),
        f"\n{memory['transitions']:,} transitions and {memory['segments']:,} segments, "
        f"filled in {memory['fill_seconds']:.1f} s; peak resident memory "
        f"{memory['peak_resident'] / 1e9:.2f} GB, {memory['resident_before'] / 1e9:.2f} GB before",
    ]
    if "peak_device" in memory:
        lines.append(f"peak memory on the device {memory['peak_device'] / 1e9:.2f} GB")
    if written:
        lines.append(
            f"all frames written in {written['seconds']['write_frames']:.1f} s, read back in "
            f"{written['seconds']['read_frames']:.1f} s, {written['bytes'] / 1e6:.1f} MB on disk"
        )
    return "\n".join(lines)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
