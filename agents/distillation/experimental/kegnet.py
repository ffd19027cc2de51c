"""KegNet: distillation without data, on states from generators trained on the teacher alone.

The generators learn how the teacher's outputs change with the pixels, not which states occur in the
game or follow each other.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agents.distillation.dataset import LABEL_BATCH, Dataset
from agents.distillation.experimental.generators import (
    Generator,
    KegNetConfig,
    shape_of,
    train_generator,
)
from agents.distillation.experimental.synthetic import labelled, noise
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import write_record
from agents.distillation.settings import AUTO, KEGNET, Stopped
from agents.distillation.teachers import temperature_of
from agents.distillation.trainer import generator_from
from agents.trained import TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.host_memory import available_bytes, unfilled
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.directory import differences
from ebu.run.progress import progress_bar
from ebu.state_checks import REFUSED

RECORD = "kegnet.json"
"""Measurements of `generate`, in its directory.

| key | meaning |
| --- | --- |
| temperature | τ of the generators, in units of the teacher's outputs |
| actions | shares of the states in which each action is the teacher's best |
| generators | of each the terms of its loss, see `train_generator`; wanted: share of its states |
| | in which the teacher's best action is the label |
"""
NOISE_STATES = 512
"""States of noise on which the generators' temperature is measured."""
_STREAM = int.from_bytes(b"kegn")


def make_states(pipeline: Pipeline, source: str) -> Dataset:
    """States of generators trained on the pipeline's teacher, generated now or loaded."""
    count = pipeline.config.states
    updates = -(-pipeline.config.kegnet_samples // KegNetConfig.batch_size)

    def make() -> Dataset:
        return generate(
            pipeline.teacher,
            count=count,
            config=KegNetConfig(updates=updates),
            seed=pipeline.config.seed,
            directory=pipeline.config.out / KEGNET,
            should_stop=pipeline.should_stop,
        )

    return pipeline.load_or_make(source, source, make, count=count)


def generate(
    teacher: TrainedAgent,
    *,
    count: int,
    seed: int,
    directory: Path,
    should_stop: Callable[[], bool],
    config: KegNetConfig | None = None,
) -> Dataset:
    """Train generators on a teacher, and label `count` states that they generate.

    No frame of a game is used. Each state is an episode of its own with all its frames, 28 kB on
    Atari. Its action is the label y it was generated for; its outputs are the teacher's for the
    stacks as bytes.

    The generators' τ is `auto` on states of noise: before the generators there are no others. A
    student's `auto` is then the gap on the generated states. Neither need be near the gap in play.

    | argument | meaning |
    | --- | --- |
    | count | at least two, and one for each generator |
    | seed | of all random numbers: the states depend only on it and the teacher |
    | directory | keeps each trained generator, and `RECORD`; after a stop or a kill the same call |
    | | resumes with the first unfinished generator, and generates the same states |
    | should_stop | asked before every update and every batch of states |

    Raises `Stopped` if told to stop; `UsageError` for too few states, more than memory holds, and a
    directory with other generators; `EbuError` where the teacher's outputs give no temperature, a
    loss is no longer a number, a file is damaged or the disk is full.
    """
    config = config or KegNetConfig()
    stack, *sides = shape_of(teacher)
    _check_count(count, config, stack * math.prod(sides))
    making, *streams = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).spawn(
        1 + config.generators
    )
    rng = np.random.default_rng(making)
    seen = noise(
        NOISE_STATES, frame_shape=tuple(sides), stack=stack, label=teacher.outputs_of, rng=rng
    )
    temperature = temperature_of(AUTO, seen.outputs, kind=teacher.outputs).value
    source = {**asdict(config), "seed": seed, "teacher_frames": teacher.frames}
    generators: list[Generator] = []
    records: list[dict[str, float]] = []
    with progress_bar("KegNet: updates", config.generators * config.updates, "updates") as progress:
        for number, stream in enumerate(streams):
            done = number * config.updates
            draws = generator_from(np.random.default_rng(stream))
            generator = Generator(config, teacher, draws).to(teacher.device)
            saved = directory / f"generator-{number}"
            means = _load(saved, generator, source)
            if means is None:
                means = train_generator(
                    generator,
                    config,
                    teacher,
                    temperature,
                    draws,
                    should_stop,
                    lambda updates, done=done: progress(done + updates),  # type: ignore[misc]
                )
                weights = dict(generator.state_dict())
                state = {"generator": weights, "means": means, "source": source}
                save_checkpoint(saved, "trained", state, keep=1)
            progress(done + config.updates)
            generators.append(generator.eval())
            records.append(means)
    with progress_bar("KegNet: states", count, "states") as progress:
        states, makers = _make(generators, config, teacher, count, rng, should_stop, progress)
    best = states.outputs.argmax(dim=1)
    for number, record in enumerate(records):
        record["wanted"] = float((best == states.actions)[makers == number].double().mean())
    result = {
        "temperature": temperature,
        "states": count,
        "actions": (torch.bincount(best, minlength=states.num_actions) / count).tolist(),
        "generators": records,
    }
    write_record(directory / RECORD, result)
    return states


def _check_count(count: int, config: KegNetConfig, size: int) -> None:
    """Raise `UsageError` for too few states, or more of this size than memory holds."""
    fewest = max(2, config.generators)
    if count < fewest:
        raise UsageError(f"--states {count}: KegNet's generators make at least {fewest}")
    available = available_bytes(torch.device("cpu"))
    if available is not None and count * size > available:
        raise UsageError(
            f"--states {count}: generated states share no frames, so they take "
            f"{count * size / 1e9:.2f} GB of memory, but {available / 1e9:.2f} GB are free: at "
            f"most {available // size} fit"
        )


def _load(directory: Path, generator: Generator, source: dict[str, Any]) -> dict[str, float] | None:
    """Load a trained generator and return its means; None where there is none."""
    checkpoint = load_latest(directory, kind="trained")
    if checkpoint is None:
        return None
    if differing := differences(checkpoint.state.get("source", {}), source):
        raise UsageError(
            f"{directory} holds a generator trained otherwise: {'; '.join(differing)}. Choose "
            "another directory"
        )
    try:
        generator.load_state_dict(checkpoint.state["generator"])
        means: dict[str, float] = checkpoint.state["means"]
    except REFUSED as error:
        raise EbuError(
            f"{directory} holds a generator for another teacher: choose another directory"
        ) from error
    return means


@torch.no_grad()
def _make(
    generators: list[Generator],
    config: KegNetConfig,
    teacher: TrainedAgent,
    count: int,
    rng: np.random.Generator,
    should_stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> tuple[Dataset, Tensor]:
    """Generate states in equal parts; also returns the generator of each: (count,) int64."""
    stack, *sides = shape_of(teacher)
    frames = unfilled((count * stack, *sides), torch.uint8, torch.device("cpu"))
    stacks = frames.view(count, stack, *sides)
    actions = torch.from_numpy(rng.integers(teacher.num_actions, size=count))
    codes = torch.from_numpy(rng.standard_normal((count, config.codes), dtype=np.float32))
    makers = torch.arange(count) * len(generators) // count
    labels = functional.one_hot(actions, teacher.num_actions).float()
    for number, generator in enumerate(generators):
        for part in (makers == number).nonzero().squeeze(1).split(LABEL_BATCH):
            if should_stop():
                raise Stopped
            made = generator(labels[part].to(teacher.device), codes[part].to(teacher.device))
            stacks[part] = made.round().to(torch.uint8).cpu()
            progress(int(part[-1]) + 1)
    lengths = torch.full((count,), stack)
    return labelled(frames, lengths, stack, teacher.outputs_of, rng, actions), makers
