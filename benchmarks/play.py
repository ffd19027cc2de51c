"""Random play that fills a replay memory, for benchmarks that learn from it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from benchmarks.measurement import BenchmarkSettings
from benchmarks.runs import FRAMES_PER_STEP, NEVER, open_run
from ebu.run.settings import Bounds, Device, Positive
from ebu.training import Trainer

# Settings that are flags of train.py.
_OF_A_RUN = ("game", "num_envs", "seed", "threads", "device", "deterministic")


@dataclass(frozen=True)
class PlaySettings(BenchmarkSettings):
    """Random play that fills a replay memory, to be learnt from."""

    game: str = "pong"
    """An Atari game, played at random."""
    num_envs: Positive = 16
    """Environments that play."""
    steps: Annotated[int, Bounds(least=100)] = 1_200
    """Vector steps of play in the memory; a game of Pong is over in a thousand."""
    threads: Positive = 2
    """Threads of torch."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    deterministic: bool = False
    """On a GPU, take only operations that give the same bits every time."""


@contextmanager
def random_play(settings: PlaySettings) -> Iterator[Trainer]:
    """A run that has played at random and learnt nothing.

    Its replay memory holds all steps, and at least one segment of each environment.
    """
    transitions = settings.steps * settings.num_envs
    frames = transitions * FRAMES_PER_STEP
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = open_run(
            run_dir,
            frames=frames,
            learning_starts=NEVER,
            # A quarter of a ring, after which a segment is cut, is less than was played.
            replay_capacity=3 * transitions,
            epsilon_start=1,
            epsilon_end=1,
            **{name: getattr(settings, name) for name in _OF_A_RUN},
        )
        try:
            trainer.run(frames)
            yield trainer
        finally:
            trainer.close()


def network_arguments(trainer: Trainer) -> dict[str, Any]:
    """Arguments of a learner that fit the environments and the device of a run."""
    return {
        "stack": trainer.env.stack,
        "frame_shape": trainer.env.frame_shape,
        "num_actions": trainer.env.num_actions,
        "device": trainer.replay.device,
    }
