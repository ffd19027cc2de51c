"""A replay memory of noise, and agents that learn from it: no emulator takes part."""

from typing import Any

import numpy as np
import torch

from agents import Agent, LearnerConfig, build_agent, build_learner
from agents.settings import AgentConfig
from ebu.replay import EpisodicReplay
from envs import VectorStep

STACK = 4


def noise_memory(
    device: torch.device,
    *,
    steps: int = 400,
    streams: int = 4,
    side: int = 36,
    actions: int = 4,
    capacity: int = 4_000,
    p_end: float = 0.03,
) -> EpisodicReplay:
    """Streams of noise whose games end, lose lives and are cut."""
    rng = np.random.default_rng(0)
    replay = EpisodicReplay(
        capacity=capacity,
        num_streams=streams,
        frame_shape=(side, side),
        frame_dtype=torch.uint8,
        stack=STACK,
        device=device,
    )
    started = np.ones(streams, dtype=bool)
    for _ in range(steps):
        over, cut = rng.random((2, streams)) < [[p_end], [p_end / 3]]
        replay.append(
            rng.integers(256, size=(streams, side, side), dtype=np.uint8),
            rng.integers(actions, size=streams),
            rng.normal(size=streams).astype(np.float32),
            over & ~started,
            cut & ~over & ~started,
            started,
            np.ones(streams, dtype=np.float32),
        )
        started = (over | cut) & ~started
    return replay


def agent_for(
    replay: EpisodicReplay,
    settings: AgentConfig,
    learner: LearnerConfig,
    *,
    precision: str = "float32",
    actions: int = 4,
) -> Agent:
    """An agent that has seen the first frames of its environments."""
    shape: dict[str, Any] = {"stack": replay.stack, "frame_shape": replay.frame_shape}
    agent = build_agent(
        settings,
        build_learner(
            settings,
            learner,
            **shape,
            num_actions=actions,
            device=replay.device,
            precision=precision,
            rng=np.random.default_rng(1),
        ),
        np.random.default_rng(2),
    )
    streams = replay.num_streams
    none, frames = np.zeros(streams, bool), np.zeros((streams, *replay.frame_shape), np.uint8)
    agent.observe(VectorStep(frames, np.zeros(streams, np.float32), none, none, none, ~none))
    return agent
