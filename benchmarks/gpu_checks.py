"""What has to work on a GPU: each path once, small, with what it took and how far it is off."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agents import AGENTS, Agent, LearnerConfig
from benchmarks.measurement import targets_by, times
from benchmarks.noise import agent_for, noise_memory
from benchmarks.parity import TOLERANCE, difference, in_step
from benchmarks.pieces import ROOT, Figures, Piece, last_lines
from benchmarks.runs import in_process
from benchmarks.target_speed import measure_one
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.machine import arithmetic, prepare_torch
from ebu.staging import HALF_BYTES, Staging

# Groups of 1, 2, 4, 8 and 16 updates.
UPDATES = 31


class Scope(NamedTuple):
    """What is measured on, and in which size.

    | field | meaning |
    | --- | --- |
    | rehearse | everything as small as it can be |
    | threads | of the emulators; 0: all cores |
    """

    device: torch.device
    rehearse: bool
    num_envs: int
    threads: int
    seed: int


def checks_of(scope: Scope) -> list[Piece]:
    """All checks, in order: what the others are made of first."""
    agents = [
        *((*each, "adam") for each in product(AGENTS, ("float32", "bfloat16"))),
        *(("ebu", "tf32", "adam"), ("dqn", "tf32", "adam"), ("ebu", "float32", "rmsprop")),
    ]
    return [
        Piece("kernel", 60, partial(targets, scope)),
        Piece("staging", 30, partial(staging, scope)),
        Piece("gather", 30, partial(gather, scope)),
        *(
            Piece(f"graphs of {' '.join(each)}", 45, partial(graphs, scope, *each))
            for each in sorted(agents, key=lambda each: each[0] not in ("ebu", "dqn"))
        ),
        Piece("deterministic", 60, partial(deterministic, scope)),
        Piece("save and load", 45, partial(save_and_load, scope)),
        Piece("train, resume, evaluate", 120, partial(commands, scope)),
    ]


@cache
def memory(device: torch.device, rehearse: bool) -> EpisodicReplay:
    """Noise that all checks learn from."""
    if rehearse:
        return noise_memory(device, steps=100)
    return noise_memory(device, steps=700, streams=64, side=84, capacity=200_000, p_end=0.01)


def agent_of(
    name: str,
    replay: EpisodicReplay,
    *,
    precision: str = "float32",
    optimizer: Any = "adam",
    cuda_graphs: bool = True,
) -> Agent:
    learner = LearnerConfig(target_sync_updates=50, optimizer=optimizer)
    settings = replace(AGENTS[name], cuda_graphs=cuda_graphs)
    return agent_for(replay, settings, learner, precision=precision)


def time_call(device: torch.device, call: Any) -> float:
    """Seconds of one call, its work on the device included."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def targets(scope: Scope) -> Iterator[Figures]:
    """Backward targets in all ways; raises where they differ."""
    yield {"targets by": targets_by(scope.device)}
    for steps, learners in ((1, 1), (45, 1), (700, 3), (3_000, 11)):
        if not (scope.rehearse and steps > 45):
            yield measure_one(steps, learners, repetitions=3, seed=scope.seed, device=scope.device)


def staging(scope: Scope) -> Iterator[Figures]:
    """Whether arrays of all sizes arrive as they were sent."""
    upload, rng = Staging(scope.device).upload, np.random.default_rng(scope.seed)
    sizes = [1, 7, HALF_BYTES // 3, HALF_BYTES // 4, 2 * HALF_BYTES] * (1 if scope.rehearse else 6)
    sent = [rng.integers(200, size=size).astype(np.uint8) for size in sizes]
    arrived = [upload(array) for array in sent]
    equal = all(np.array_equal(a, b.cpu().numpy()) for a, b in zip(sent, arrived, strict=True))
    assert equal, "what arrived is not what was sent"
    yield {"arrays": len(sizes)}


def gather(scope: Scope) -> Iterator[Figures]:
    """Ways to read 128 frames, microseconds each."""
    frames = memory(scope.device, scope.rehearse)._frames
    words = frames.flatten(1).view(torch.int64)
    rows = torch.randint(len(frames), (128,), device=scope.device)
    ways = {
        "index_select": lambda: frames.index_select(0, rows),
        "index": lambda: frames[rows],
        "index_select of words": lambda: words.index_select(0, rows),
    }
    for name, call in ways.items():

        def row(call: Any = call) -> None:
            for _ in range(100):
                call()

        yield {name: 1e4 * min(times(row, 3, scope.device))}


def graphs(scope: Scope, name: str, precision: str, optimizer: str) -> Iterator[Figures]:
    """Graphs against separate launches: differences, and what capture, learning and acting take."""
    replay = memory(scope.device, scope.rehearse)
    updates = 3 if scope.rehearse else UPDATES
    with arithmetic(scope.device, precision):
        graphed, eager = (
            agent_of(name, replay, precision=precision, optimizer=optimizer, cuda_graphs=enabled)
            for enabled in (True, False)
        )
        captures = time_call(
            scope.device, lambda: in_step({"graphed": graphed, "eager": eager}, replay, updates)
        )
        apart = in_step({"graphed": graphed, "eager": eager}, replay, updates)
        yield {"with captures, s": captures, "apart": apart}
        assert apart <= TOLERANCE[precision], f"{apart} apart, {TOLERANCE[precision]} allowed"
        eager.load_state_dict(graphed.state_dict())
        states, actions = replay.newest_states(), []
        for agent in (graphed, eager):
            for play in (agent.act, agent.play):
                actions.append(play(states, epsilon=0.0, rng=np.random.default_rng(0))[0])
            # Another number of games, as when an evaluation ends.
            agent.play(states[:3], epsilon=0.0, rng=np.random.default_rng(0))
        same = [float((one == actions[0]).mean()) for one in actions[1:]]
        yield {"actions that are the same": min(same)}
        for way, agent in (("graphs", graphed), ("launches", eager)):
            seconds = time_call(scope.device, partial(agent.learn, replay, updates))
            yield {f"{way}, µs an update": 1e6 * seconds / updates}
        metrics = graphed.metrics()
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    yield metrics


def train_twice(device_name: str, updates: int, threads: int = 1) -> float:
    """How far apart two agents end under --deterministic."""
    device = torch.device(device_name)
    prepare_torch(device, threads, deterministic=True)
    replay = noise_memory(device)
    ends = [agent_of("ebu", replay) for _ in range(2)]
    for agent in ends:
        agent.learn(replay, updates)
    return difference(*ends).item()


def deterministic(scope: Scope) -> Iterator[Figures]:
    """The same bits twice, in a process of its own: cuBLAS reads its settings once."""
    updates = 5 if scope.rehearse else 200
    apart = in_process(train_twice, scope.device.type, updates, scope.threads or 1)
    yield {"apart": apart}
    assert apart == 0, "not the same bits"


def save_and_load(scope: Scope) -> Iterator[Figures]:
    """An agent and a memory through a checkpoint, and how far apart they learn afterwards."""
    replay = memory(scope.device, scope.rehearse)
    agent, other = (agent_of("ebu", replay) for _ in range(2))
    again = type(replay)(
        capacity=replay.capacity,
        num_streams=replay.num_streams,
        frame_shape=replay.frame_shape,
        frame_dtype=replay.frame_dtype,
        stack=replay.stack,
        device=replay.device,
    )
    agent.learn(replay, 20)
    # Captured before it is restored.
    other.learn(replay, 5)
    with tempfile.TemporaryDirectory() as name:
        state = {"agent": agent.state_dict(), "replay": replay.state_dict()}
        written = time_call(
            scope.device,
            lambda: save_checkpoint(Path(name), "frames-20", state, writers=[replay.write_frames]),
        )
        found = load_latest(Path(name))
        assert found is not None
        again.load_state_dict(found.state["replay"], num_actions=4)
        read = time_call(scope.device, partial(again.read_frames, found.directory))
        other.load_state_dict(found.state["agent"])
    yield {"frames written, s": written, "read, s": read}
    steps = replay.transitions.num_steps
    assert torch.equal(again._ring()[:steps], replay._ring()[:steps]), "other frames"
    assert difference(agent, other).item() == 0, "other weights"
    for each, learns_from in ((agent, replay), (other, again)):
        each.learn(learns_from, 4)
    apart = difference(agent, other).item()
    yield {"apart after 4 updates": apart}
    assert apart <= TOLERANCE["float32"], f"{apart} apart"


def commands(scope: Scope) -> Iterator[Figures]:
    """train.py with evaluation and checkpoint, resumed, and evaluate.py."""
    frames = 3_000 if scope.rehearse else 24_000
    with tempfile.TemporaryDirectory() as name:
        run = f"{name}/run"
        start = (
            f"train.py --game breakout --run-dir {run} --frames {frames} --num-envs 4 "
            f"--device {scope.device.type} --threads {scope.threads} --replay-capacity 20000 "
            f"--learning-starts 500 --updates-per-step 0.25 --eval-every-frames {frames // 2} "
            "--eval-episodes 2 --network net1"
        )
        for words in (
            start,
            f"train.py --resume {run} --frames {frames + 1_000}",
            f"evaluate.py {run} --episodes 2 --device {scope.device.type}",
        ):
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *words.split()], cwd=ROOT, capture_output=True, text=True
            )
            yield {words.split()[0]: time.perf_counter() - started}
            assert done.returncode == 0, last_lines(done.stdout + done.stderr)
