"""Deploy agents: write their ONNX files, check, quantise, score and time them.

DIR/NAME.onnx                    float32
DIR/NAME.int8.onnx               int8
DIR/scores/NAME-seedN.int8.json  the games of an int8 file: played once
DIR/export.json                  the measurements, `ExportRecords`
"""

import copy
import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from agents.architectures import TEACHER
from agents.distillation.dataset import Dataset
from agents.distillation.deploy.export import (
    ONLY_SINGLE_NETWORKS,
    OPSET,
    exportable,
    onnx_bytes,
    quantise,
)
from agents.distillation.deploy.onnx_policy import OnnxPolicy, Parity, check_parity, compare
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import (
    EXPORT,
    STUDENTS,
    Score,
    StudentRecord,
    export_name,
    file_name,
    read_record,
    student_name,
    write_record,
)
from agents.distillation.settings import require_export
from agents.trained import TrainedAgent, load_agent
from ebu.interfaces import Act
from ebu.run.files import write_whole
from ebu.run.hardware import hardware
from ebu.run.progress import say

EXPORTS = "export.json"
PARITY_STATES, CALIBRATION_STATES, TIMED_STATES = 10_000, 512, 64
CALLS, BLOCK_CALLS, WARMUP_CALLS = 1_000, 100, 10
"""Timed calls of each network in all and in a block; calls before each block that do not count."""

NameT = TypeVar("NameT", bound=Hashable)


class Latency(TypedDict):
    """Microseconds of a call: the median, and what one call in a hundred exceeds."""

    p50_us: float
    p99_us: float


class Int8Record(TypedDict):
    """The int8 file.

    | key | meaning |
    | --- | --- |
    | onnx, bytes | file name and size |
    | calibrated_on | number of states, of those to train on |
    | states, agreement | share of the held-out states with torch's action |
    | evaluation | games that the file itself has played |
    """

    onnx: str
    bytes: int
    calibrated_on: int
    states: int
    agreement: float
    evaluation: Score


class Latencies(TypedDict):
    """Answers to one state on one thread, of torch and of both files; see `latency.latencies`."""

    torch: Latency
    onnxruntime: Latency
    int8: Latency
    threads: int
    batch: int
    calls: int
    hardware: str


class ExportRecord(TypedDict):
    """An exported agent; `seed` is the one it was trained with, `onnx` the float32 file's name."""

    seed: int
    onnx: str
    bytes: int
    opset: int
    parity: Parity
    int8: Int8Record
    latency: Latencies


class ExportRecords(TypedDict):
    """All agents exported together, by name: their latencies were taken in the same minutes.

    left_out: the names of those that cannot be exported, and why.
    """

    exports: dict[str, ExportRecord]
    left_out: dict[str, str]


def deploy_students(
    pipeline: Pipeline, students: Sequence[StudentRecord], dataset: Dataset
) -> None:
    """Export the teacher and these students of a pipeline, unless that is done already."""
    out, cpu, teacher = pipeline.config.out, torch.device("cpu"), pipeline.teacher
    agents = {
        TEACHER: TrainedAgent(
            copy.deepcopy(teacher.network), teacher.outputs, teacher.config, teacher.frames, cpu, []
        )
    }
    for student in students:
        name, method, seed = student["student"], student["method"], student["seed"]
        agents[export_name(name, method)] = load_agent(
            out / STUDENTS / student_name(name, method, seed)
        )
    deployed = read_exports(out / EXPORT)
    seeds = {name: agent.config["settings"]["seed"] for name, agent in agents.items()}
    found = {
        name: record["seed"]
        for name, record in deployed["exports"].items()
        if record["int8"]["evaluation"]["games"] == pipeline.games
    }
    if found == {name: seed for name, seed in seeds.items() if name not in deployed["left_out"]}:
        return
    say(f"exporting {', '.join(agents)}")
    on_cpu = replace(pipeline, evaluator=replace(pipeline.evaluator, device=cpu))
    deploy(
        out / EXPORT,
        agents,
        dataset.to(cpu),
        lambda path, act: on_cpu.saved_score(path, "int8", act),
    )


def deploy(
    directory: Path,
    agents: Mapping[str, TrainedAgent],
    dataset: Dataset,
    score: Callable[[Path, Act], Score],
    *,
    calls: int = CALLS,
) -> dict[str, ExportRecord]:
    """Export agents into a directory and measure the files.

    Agents that are no single network over images, such as ensembles, are left out and noted.

    | argument | meaning |
    | --- | --- |
    | agents | on the CPU, by the names of their files: `teacher`, `net1-kl`, … |
    | dataset | of their game; int8 files are calibrated on states to train on and judged on |
    | | held-out ones, float32 files are compared on held-out ones first |
    | score | plays the games of a score, or loads it from this file |
    | calls | of each network that are timed |

    Raises `UsageError` where packages are missing, `EbuError` where a file's outputs are not
    torch's or it cannot be written; an earlier file is then unchanged.
    """
    require_export()
    calibrate, judge = _spread(dataset.train, CALIBRATION_STATES), dataset.held_out
    exports: dict[str, ExportRecord] = {}
    left_out: dict[str, str] = {}
    timed: dict[tuple[str, str], Callable[[], object]] = {}
    stacks = [dataset.stacks(index[None]).cpu() for index in dataset.held_out[:TIMED_STATES]]
    arrays = [stack.numpy() for stack in stacks]
    for name, agent in agents.items():
        if not exportable(agent.network):
            left_out[name] = ONLY_SINGLE_NETWORKS
            continue
        if agent.device.type != "cpu":
            raise ValueError(f"{name} is on {agent.device}: it is compared and timed on the CPU")
        path = directory / f"{file_name(name)}.onnx"
        path8 = path.with_suffix(".int8.onnx")
        parity = write_checked(agent, path, dataset, name=name)
        content = path.read_bytes()
        content8 = quantise(content, dataset, calibrate)
        policy, policy8 = OnnxPolicy(content, path.name), OnnxPolicy(content8, path8.name)
        write_whole(path8, content8)
        seed = agent.config["settings"]["seed"]
        exports[name] = {
            "seed": seed,
            "onnx": path.name,
            "bytes": len(content),
            "opset": OPSET,
            "parity": parity,
            "int8": {
                "onnx": path8.name,
                "bytes": len(content8),
                "calibrated_on": len(calibrate),
                "states": len(judge),
                "agreement": compare(agent, policy8, dataset, judge)["agreement"],
                "evaluation": score(
                    directory / f"scores/{path.stem}-seed{seed}.int8.json", policy8.choose
                ),
            },
            "latency": {},  # type: ignore[typeddict-item]
        }
        timed[name, "torch"] = _in_turn(agent.outputs_of, stacks)
        timed[name, "onnxruntime"] = _in_turn(policy.outputs_of, arrays)
        timed[name, "int8"] = _in_turn(policy8.outputs_of, arrays)
    taken = latencies(timed, calls=calls)
    for name, record in exports.items():
        record["latency"] = {
            "torch": taken[name, "torch"],
            "onnxruntime": taken[name, "onnxruntime"],
            "int8": taken[name, "int8"],
            "threads": 1,
            "batch": 1,
            "calls": calls,
            "hardware": hardware(),
        }
    write_record(directory / EXPORTS, {"exports": exports, "left_out": left_out})
    return exports


def write_checked(agent: TrainedAgent, path: Path, dataset: Dataset, *, name: str) -> Parity:
    """Write an agent's float32 file, if its outputs on 10,000 states are torch's.

    The states are the held-out ones, then others; `name` is the agent's, for the metadata.
    """
    content = onnx_bytes(agent, name)
    parity = compare(agent, OnnxPolicy(content, path.name), dataset, parity_states(dataset))
    check_parity(parity, path.name)
    write_whole(path, content)
    return parity


def read_exports(directory: Path) -> ExportRecords:
    """The measurements of `deploy` in this directory; empty where nothing was exported.

    Raises `EbuError` for a damaged file.
    """
    records = read_record(directory / EXPORTS, ExportRecords)
    return records or {"exports": {}, "left_out": {}}


def parity_states(dataset: Dataset, count: int = PARITY_STATES) -> Tensor:
    """Indices (at most count,) of the states held out, then of others; evenly spread."""
    held_out = _spread(dataset.held_out, count)
    return torch.cat([held_out, _spread(dataset.train, count - len(held_out))])


def _spread(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, count).long()]


def latencies(
    timed: Mapping[NameT, Callable[[], object]],
    *,
    calls: int = CALLS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[NameT, Latency]:
    """Time `calls` calls of each network, in blocks, on one thread of torch.

    Blocks of the networks take turns, because whatever else the machine does then slows all of them
    alike: ratios hold where the figures themselves do not. Calls do not: a small network would find
    the caches full of a large one's weights, as it never does where it plays alone. So each block
    starts with calls that are not timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken: dict[NameT, list[int]] = {name: [] for name in timed}
        for first in range(0, calls, BLOCK_CALLS):
            for name, call in timed.items():
                for _ in range(WARMUP_CALLS):
                    call()
                for _ in range(min(BLOCK_CALLS, calls - first)):
                    started = clock()
                    call()
                    taken[name].append(clock() - started)
    finally:
        torch.set_num_threads(threads)
    found: dict[NameT, Latency] = {}
    for name, nanoseconds in taken.items():
        p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1_000
        found[name] = {"p50_us": float(p50), "p99_us": float(p99)}
    return found


def _in_turn(answer: Callable[[Any], object], states: list[Any]) -> Callable[[], object]:
    """Ask for one state after the other: a single one would be answered from warm caches."""
    turns = itertools.cycle(states)
    return lambda: answer(next(turns))
