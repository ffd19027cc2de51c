"""How fast a GPU learns: targets, the graphs of an update, and whole runs of train.py.

Runs of a game share one set of emulators, which take 120 ms each to build.
"""

import gc
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.env_speed import time_steps
from benchmarks.gpu_checks import Scope, memory
from benchmarks.limits import Flops, copy_rate, count_flops, matrix_rate
from benchmarks.measurement import targets_by
from benchmarks.pieces import Figures, Piece
from benchmarks.runs import Conditions, Contender, open_run, time_ours
from benchmarks.target_speed import measure_one
from benchmarks.update_speed import figures_of
from ebu.commands.presets import DEFAULT
from ebu.run.machine import prepare_torch

GAMES = ("pong", "breakout")
# Those that decide come first: there may be no time for the last.
RUNS = (
    (1.0, "ebu", "float32"),
    (0.25, "ebu", "float32"),
    (1.0, "ebu", "bfloat16"),
    (1.0, "dqn", "float32"),
    (0.25, "ebu", "bfloat16"),
    (1.0, "ebu", "tf32"),
)
WINDOWS = {1.0: 20_000, 0.25: 35_000}
RUN_SECONDS, PIECE_SECONDS = 40, 40
"""Limits of a run and of the graphs of one precision."""


def figures_pieces(scope: Scope) -> list[Piece]:
    """All figures, in order: whole runs of the first game, then what they are made of."""
    precisions = ("float32", "bfloat16", "tf32")
    on_cpu = scope.device.type == "cpu"
    runs = {
        game: [
            Piece(
                f"{game}, {rate:g} updates per step, {agent} {precision}",
                RUN_SECONDS,
                partial(whole_run, scope, game, rate, agent, precision),
            )
            for rate, agent, precision in (RUNS[:1] if scope.rehearse else RUNS)
            if not (on_cpu and precision == "tf32")
        ]
        for game in GAMES
    }
    graphs = [
        Piece(f"graphs, {precision}, K = {learners}", PIECE_SECONDS, partial(
            graphs_of, scope, precision, learners
        ))
        for learners in (1, 11)
        for precision in precisions[: 1 if learners > 1 or scope.rehearse else 3]
    ]  # fmt: skip
    return [
        Piece("targets", 30, partial(targets, scope)),
        Piece("pong, emulators", 60, partial(emulators, scope, "pong")),
        *runs["pong"],
        *graphs,
        Piece("breakout, emulators", 60, partial(emulators, scope, "breakout")),
        *runs["breakout"],
        Piece("pong, deterministic", RUN_SECONDS, partial(
            whole_run, scope, "pong", 1.0, "ebu", "float32", deterministic=True
        )),
    ]  # fmt: skip


def targets(scope: Scope) -> Iterator[Figures]:
    """Backward targets, the scan against the recursion step by step."""
    yield {"targets by": targets_by(scope.device)}
    sizes = ((32, 1),) if scope.rehearse else ((32, 1), (512, 1), (8_192, 1), (512, 11))
    for steps, learners in sizes:
        yield measure_one(steps, learners, repetitions=3, seed=scope.seed, device=scope.device)


def emulators(scope: Scope, game: str) -> Iterator[Figures]:
    """Frames per second of the emulators that the runs play in, under random actions."""
    # A memory that nothing is stored in.
    sizes = {"replay_capacity": 100 * scope.num_envs, "learning_starts": 10**9}
    with open_run(game=game, frames=10**9, **sizes, **where(scope)) as trainer:
        env = trainer.env
        env.reset()
        steps = 20 if scope.rehearse else 400
        rng = np.random.default_rng(scope.seed)
        actions = rng.integers(env.num_actions, size=(steps, scope.num_envs))

        def step(chosen: np.ndarray) -> None:
            env.send(chosen)
            env.recv()

        time_steps(step, actions[: steps // 4])
        yield {"environments": scope.num_envs, "frames per second": time_steps(step, actions)}


def where(scope: Scope) -> dict[str, Any]:
    """Flags of train.py on the machine."""
    return {
        "device": scope.device.type,
        "threads": scope.threads,
        "num_envs": scope.num_envs,
        "seed": scope.seed,
    }


def whole_run(
    scope: Scope, game: str, rate: float, agent: str, precision: str, *, deterministic: bool = False
) -> Iterator[Figures]:
    """A window of a run of train.py, with its stages in microseconds per vector step."""
    conditions = Conditions(
        seed=scope.seed,
        game=game,
        updates_per_step=rate,
        threads=scope.threads,
        device=scope.device.type,
        window=40 if scope.rehearse else WINDOWS[rate],
        warmup_updates=2 if scope.rehearse else 2_000,
        learning_starts=120 if scope.rehearse else DEFAULT.loop.learning_starts,
        replay_capacity=2_000 if scope.rehearse else 1_000_000,
    )
    contender = Contender(agent, scope.num_envs, precision, deterministic)
    window = time_ours(contender, conditions, scope.seed)
    vector_steps = window.frames / 4 / scope.num_envs
    yield {
        "frames per second": window.frames / window.seconds,
        "updates per second": window.updates / window.seconds,
        "seconds": window.seconds,
        "targets by": targets_by(scope.device),
        "µs per vector step": {
            stage: round(1e6 * seconds / vector_steps, 1)
            for stage, seconds in window.stages.items()
        },
    }
    gc.collect()
    if scope.device.type == "cuda":
        # The memory of a million transitions goes before the next one comes.
        torch.cuda.empty_cache()


@cache
def rates(device: torch.device, precision: str) -> tuple[Flops, float, float]:
    """What a network computes, and the rates of products and copies."""
    return count_flops("pong"), matrix_rate(device, precision)["max"], copy_rate(device)


def graphs_of(scope: Scope, precision: str, learners: int) -> Iterator[Figures]:
    """Each graph of an update, with its limits; see `update_speed`."""
    prepare_torch(scope.device, scope.threads or 1, autotune=True)
    replay = memory(scope.device, scope.rehearse)
    flops, matrix, copied = rates(scope.device, precision)
    arguments: dict[str, Any] = {
        "stack": replay.stack,
        "frame_shape": replay.frame_shape,
        "num_actions": 6,
        "device": scope.device,
    }
    for figures in figures_of(
        replay,
        arguments,
        precision=precision,
        learners=3 if scope.rehearse and learners > 1 else learners,
        repetitions=1 if scope.rehearse else 100,
        flops=flops,
        matrix=matrix,
        copied=copied,
    ):
        yield {"graph": figures.pop("piece"), **figures}
