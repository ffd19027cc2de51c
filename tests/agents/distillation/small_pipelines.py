"""Teachers of a game of noise, and pipelines with as few games and updates as possible."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.distillation.pipeline import Pipeline
from agents.distillation.settings import DistillConfig
from agents.networks import build_network
from agents.trained import Outputs, TrainedAgent
from ebu.evaluation import Evaluator, Seeds
from envs import VectorStep
from tests.made_up import CPU, NUM_ACTIONS, MadeUpGames, random_games

SIDE, STACK = 36, 3
NETWORK = "3-3-3/6"


class Pictures(MadeUpGames):
    """Games seen as noise, different in every step of every game."""

    frame_shape, frame_dtype = (SIDE, SIDE), np.dtype(np.uint8)  # type: ignore[assignment]

    def recv(self) -> VectorStep:
        row = super().recv()
        places = row.frames.astype(int).tolist()
        pictures = [
            np.random.default_rng(place).integers(256, size=self.frame_shape) for place in places
        ]
        return row._replace(frames=np.stack(pictures).astype(np.uint8))


def config_with(out: Path = Path("out"), **changes: Any) -> DistillConfig:
    """Settings on the CPU."""
    machine: dict[str, Any] = {"device": "cpu", "precision": "float32", "threads": 1}
    return DistillConfig(run_dirs=(Path("teacher"),), out=out, **{**machine, **changes})


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher_of(
    seed: int = 0,
    *,
    outputs: Outputs = "values",
    num_actions: int = NUM_ACTIONS,
    network: str = NETWORK,
    stack: int = STACK,
    frame_shape: tuple[int, ...] = (SIDE, SIDE),
    **settings: Any,
) -> TrainedAgent:
    """An agent with random weights."""
    sizes: dict[str, Any] = {"stack": stack, "frame_shape": frame_shape, "num_actions": num_actions}
    environment = {
        **sizes,
        "frame_shape": list(frame_shape),
        "frame_dtype": "uint8",
        "frames_per_step": 4,
    }
    built = build_network(network, **sizes, generator=rng_of(seed))
    known = {"game": "pictures", "protocol": "paper", "network": network, "agent": "ebu", "seed": 0}
    config = {"settings": {**known, **settings}, "environment": environment}
    return TrainedAgent(built, outputs, config, 100, CPU, [])


def pipeline_in(
    out: Path, teacher: TrainedAgent, *, should_stop: Any = lambda: False, **changes: Any
) -> Pipeline:
    """A pipeline with two games for a score and a few updates."""

    def games(num_envs: int, seed: int) -> Pictures:
        return Pictures(num_envs, random_games(seed, 30), stack=STACK)

    small = {"updates": 6, "batch_size": 8, "log_every_updates": 6}
    states = {"states": 60, "rounds": 1, "num_envs": 6}
    return Pipeline(
        config=config_with(out, **{**small, **states, **changes}),
        teacher=teacher,
        teacher_dir=out / "teacher",
        evaluator=Evaluator(
            new_env=games,
            num_envs=2,
            episodes=2,
            seeds=Seeds(5, np.random.SeedSequence(6)),
            epsilon=0.05,
            random_start_actions=0,
            random_score=None,
            human_score=None,
            human_table="nature2015",
            device=CPU,
        ),
        life_loss_ends_value=False,
        should_stop=should_stop,
    )
