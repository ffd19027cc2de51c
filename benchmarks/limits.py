"""What a training run asks of a machine, and the rates at which the machine could do it.

The rates are best cases: a large matrix product, a bare emulator on every core, a large copy to the
replay memory's device. The arithmetic of a run is counted on the network. Memory traffic, pointwise
operations and launches cost nothing here, so a run cannot reach these limits.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents import Learner, LearnerConfig
from benchmarks import env_speed
from benchmarks.measurement import spread, times
from benchmarks.runs import BATCH_SIZE, FRAMES_PER_STEP, Conditions
from ebu.run.machine import arithmetic
from envs import AtariVector

# Rows and columns of the matrices: some tenths of a second at most.
MATRIX_SIDE = {"cpu": 1_536, "cuda": 8_192}
COPIED_BYTES = 64 << 20
EMULATED_STEPS = 1_000
REPETITIONS = 5
MILLION = 1_000_000


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, additions and multiplications counted separately.

    | field | meaning |
    | --- | --- |
    | update | of a gradient step on a minibatch: forward and backward |
    | state | of the forward pass of one state |
    """

    update: int
    state: int


@dataclass(frozen=True)
class Limits:
    """The rates of a machine, and what a run asks of it.

    | field | unit |
    | --- | --- |
    | matrix | FLOP/s of a large product of random matrices, by precision: min, median, max |
    | emulator | frames/s of one bare emulator on one core |
    | copy | bytes/s from the emulators' memory to the replay memory's |
    """

    matrix: dict[str, dict[str, float]]
    emulator: float
    copy: float
    flops: Flops

    def seconds_per_million_frames(
        self, precision: str, updates_per_step: float, cores: int
    ) -> dict[str, float]:
        """The least that each stage of a run could take, by the fastest product measured.

        `target_passes` is a part of `learning`; a run can hide all of `emulator_wait` behind it.
        """
        agent_steps = MILLION / FRAMES_PER_STEP
        rate = self.matrix[precision]["max"]
        per_update = self.flops.update + BATCH_SIZE * self.flops.state
        updates = agent_steps * updates_per_step
        return {
            "acting": agent_steps * self.flops.state / rate,
            "learning": updates * per_update / rate,
            "target_passes": updates * BATCH_SIZE * self.flops.state / rate,
            "emulator_wait": MILLION / (self.emulator * cores),
            "storing": agent_steps * float(np.prod(AtariVector.frame_shape)) / self.copy,
        }

    def frames_per_second(self, precision: str, updates_per_step: float) -> float:
        """Of a run that did nothing but its arithmetic, at the rate of a large product."""
        seconds = self.seconds_per_million_frames(precision, updates_per_step, cores=1)
        return MILLION / (seconds["acting"] + seconds["learning"])


def measure_limits(conditions: Conditions, precisions: tuple[str, ...]) -> Limits:
    """Measure all rates, in a process that does nothing else."""
    device = conditions.prepare()
    return Limits(
        matrix={precision: matrix_rate(device, precision) for precision in precisions},
        emulator=emulator_rate(conditions.game),
        copy=copy_rate(device),
        flops=count_flops(conditions.game),
    )


def matrix_rate(device: torch.device, precision: str) -> dict[str, float]:
    """FLOP/s of the product of two large matrices of normal random numbers."""
    side = MATRIX_SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    product = torch.empty_like(matrix)
    with arithmetic(device, precision):
        seconds = times(lambda: torch.mm(matrix, matrix, out=product), REPETITIONS, device)
    return spread(2 * side**3 / each for each in seconds)


def emulator_rate(game: str) -> float:
    """Frames per second of one bare emulator under random actions."""
    step = env_speed.emulator(env_speed.Settings(game=game), ExitStack())
    num_actions = env_speed.num_actions(game)
    actions = np.random.default_rng(0).integers(num_actions, size=(EMULATED_STEPS, 1))
    env_speed.time_steps(step, actions[:100])
    return env_speed.time_steps(step, actions)


def copy_rate(device: torch.device) -> float:
    """Bytes per second of a large copy from the host, out of pinned memory on a GPU."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    return COPIED_BYTES / min(times(lambda: target.copy_(source), REPETITIONS, device))


def count_flops(game: str) -> Flops:
    """Count what the network of this game computes."""
    learner = Learner(
        LearnerConfig(),
        stack=AtariVector.stack,
        frame_shape=AtariVector.frame_shape,
        num_actions=env_speed.num_actions(game),
        device=torch.device("cpu"),
        precision="float32",
        rng=np.random.default_rng(0),
    )
    states = torch.zeros(BATCH_SIZE, AtariVector.stack, *AtariVector.frame_shape, dtype=torch.uint8)
    actions = torch.zeros(BATCH_SIZE, dtype=torch.int64)
    counter: Any
    with FlopCounterMode(display=False) as counter:
        learner.update(states, actions, torch.zeros(BATCH_SIZE))
    update = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        learner.values(states[:1])
    return Flops(update, counter.get_total_flops())
