"""What each of several processes has of a run, and what they cannot train."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.registry import refuse_ranks
from agents.settings import SegmentConfig
from ebu.commands.presets import TrainConfig
from ebu.errors import UsageError
from ebu.frames import torch_dtype
from ebu.host_memory import refuse_oversized_replay
from ebu.replay import EpisodicReplay
from ebu.run.ranks import Ranks
from envs import VectorEnvironment


def check_ranks(
    config: TrainConfig, run_dir: Path, earlier: Mapping[str, Any] | None, ranks: Ranks
) -> None:
    """Raise `UsageError` for what several processes cannot train, or another number of them."""
    before, now = 1 if earlier is None else earlier.get("ranks", 1), ranks.world_size
    if earlier is not None and before != now:
        how = f"with torchrun --nproc-per-node {before}" if before > 1 else "without torchrun"
        raise UsageError(
            f"{run_dir} was started in {before} process{'es' * (before > 1)}, not in {now}, and "
            f"its environments and replay memory lie in as many parts: resume it {how}"
        )
    if ranks.is_single:
        return
    refuse_ranks(config.method)
    if config.distill:
        raise UsageError(
            "--distill trains on all that is stored, and each of several processes stores a part "
            "of it: leave it out, and distil the run afterwards with distill.py"
        )


def check_gpus(device: torch.device, ranks: Ranks) -> None:
    """Raise `UsageError` unless each rank of this machine has a GPU of its own."""
    if device.type == "cuda" and ranks.local_world_size > torch.cuda.device_count():
        raise UsageError(
            f"{ranks.local_world_size} processes need as many GPUs, and there are "
            f"{torch.cuda.device_count()}: lower --nproc-per-node, or add --device cpu"
        )


def part_of_rank(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The settings of a run with a rank's part of what is shared out."""
    num_envs = ranks.part_of(config.num_envs, "--num-envs")
    replay_capacity = ranks.part_of(config.replay_capacity, "--replay-capacity")
    batch_size = ranks.part_of(config.method.batch_size, "--batch-size")
    method = replace(config.method, batch_size=batch_size)
    if isinstance(method, SegmentConfig):
        # Fewer segments than ranks become one for each rank.
        mix_segments = max(method.mix_segments, ranks.world_size)
        mix_segments = ranks.part_of(mix_segments, "--mix-segments")
        method = replace(method, mix_segments=mix_segments)
    return replace(config, num_envs=num_envs, replay_capacity=replay_capacity, method=method)


def of_rank(seed: np.random.SeedSequence, ranks: Ranks) -> np.random.SeedSequence:
    """What a rank's generator starts from; a single process has the seed itself."""
    return seed if ranks.is_single else seed.spawn(ranks.world_size)[ranks.rank]


def build_replay(
    capacity: int, env: VectorEnvironment, device: torch.device, ranks: Ranks
) -> EpisodicReplay:
    """A rank's part of the replay memory. Raises `UsageError` where it does not fit."""
    dtype = torch_dtype(env.frame_dtype)
    if device.type == "cpu" and not ranks.is_single:
        needed = EpisodicReplay.required_bytes(capacity, env.num_envs, env.frame_shape, dtype)
        whole, of_machine = capacity * ranks.world_size, needed * ranks.local_world_size
        refuse_oversized_replay(whole, of_machine, 0, device)
    try:
        return EpisodicReplay(
            capacity=capacity,
            num_streams=env.num_envs,
            frame_shape=env.frame_shape,
            frame_dtype=dtype,
            stack=env.stack,
            device=device,
        )
    except UsageError as error:
        if ranks.is_single:
            raise
        raise UsageError(f"in each of {ranks.world_size} processes, {error}") from error
