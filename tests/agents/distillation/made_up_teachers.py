"""Teachers of a made-up game of pictures, and procedures with them as small as they get."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.distillation.objective import LossConfig
from agents.distillation.pipeline import Offline
from agents.distillation.students import build
from agents.distillation.teachers import Examination
from agents.distillation.trainer import TeachingConfig
from agents.trained import Outputs, TrainedAgent
from ebu.evaluation import Evaluator, Seeds
from envs import VectorStep
from tests.made_up import CPU, NUM_ACTIONS, MadeUpGames, random_games

SIDE, STACK = 36, 3
NETWORK = "3-3-3/6"


class Pictures(MadeUpGames):
    """Made-up games seen as noise, another for every step of every game."""

    frame_shape, frame_dtype = (SIDE, SIDE), np.dtype(np.uint8)  # type: ignore[assignment]

    def recv(self) -> VectorStep:
        row = super().recv()
        places = row.frames.astype(int).tolist()
        pictures = [
            np.random.default_rng(place).integers(256, size=self.frame_shape) for place in places
        ]
        return row._replace(frames=np.stack(pictures).astype(np.uint8))


def teacher_of(
    seed: int, *, outputs: Outputs = "values", num_actions: int = NUM_ACTIONS, **settings: Any
) -> TrainedAgent:
    """An agent with weights that nobody trained."""
    environment = {
        "num_actions": num_actions,
        "stack": STACK,
        "frame_shape": [SIDE, SIDE],
        "frame_dtype": "uint8",
    }
    network = build(
        NETWORK,
        num_actions,
        stack=STACK,
        frame_shape=(SIDE, SIDE),
        generator=torch.Generator().manual_seed(seed),
    ).network
    known = {"game": "pictures", "protocol": "paper", "network": NETWORK, "agent": "ebu", "seed": 0}
    config = {"settings": {**known, **settings}, "environment": environment}
    return TrainedAgent(network, outputs, config, 100, CPU, [])


@contextlib.contextmanager
def _no_bar(what: str, total: int, unit: str) -> Iterator[Any]:
    yield lambda done: None


def procedure_in(out: Path, teacher: TrainedAgent, **changes: Any) -> Offline:
    """The offline procedure with two games to be scored and a few updates."""

    def games(num_envs: int, seed: int) -> Pictures:
        return Pictures(num_envs, random_games(seed, 30), stack=STACK)

    given: dict[str, Any] = {
        "teaching": TeachingConfig(updates=6, batch_size=8, log_every_updates=6),
        "temperature": "auto",
        "outputs": None,
        "should_stop": lambda: False,
        **changes,
    }
    return Offline(
        out=out,
        teacher=teacher,
        teacher_dir=out / "teacher",
        examination=Examination(
            Evaluator(
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
            protocol="paper",
            seed=0,
        ),
        make_games=games,
        life_loss_ends_value=False,
        loss=LossConfig(),
        seed=0,
        precision="float32",
        checkpoint_minutes=10.0,
        bar=_no_bar,
        say=lambda line: None,
        **given,
    )
