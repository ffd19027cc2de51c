"""Deploy agents: write their ONNX files, check, quantise, score and time them.

DIR/NAME.onnx                     float32
DIR/NAME.int8.onnx                int8
DIR/scores/NAME-DIGEST.int8.json  the games of an int8 file: played once
DIR/export.json                   the measurements, `ExportRecords`
"""

import copy
import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

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
from agents.distillation.deploy.onnx_policy import (
    MOST_BYTES,
    OnnxPolicy,
    Parity,
    check_parity,
    compare,
)
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import (
    EXPORT,
    STUDENTS,
    GameScores,
    StudentRecord,
    export_name,
    file_name,
    read_record,
    student_name,
    write_record,
)
from agents.distillation.settings import require_export
from agents.distillation.students import digest_of
from agents.trained import TrainedAgent, load_agent
from ebu.interfaces import Act
from ebu.run.files import write_whole
from ebu.run.hardware import hardware
from ebu.run.progress import say
from ebu.run.reading import read_file

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
    | onnx, bytes, sha256 | the file's name, size and digest; earlier versions have no digest |
    | calibrated_on | number of states, of those to train on |
    | states, agreement | share of the held-out states with torch's action |
    | evaluation | games that the file itself has played |
    """

    onnx: str
    bytes: int
    sha256: NotRequired[str]
    calibrated_on: int
    states: int
    agreement: float
    evaluation: GameScores


class Latencies(TypedDict):
    """Answers to one state on one thread, of torch and of both files; see `latencies`."""

    torch: Latency
    onnxruntime: Latency
    int8: Latency
    threads: int
    batch: int
    calls: int
    hardware: str


class FilesRecord(TypedDict):
    """Both files of an agent; `seed` is the one it was trained with, `onnx` the float32 one's name.

    weights, sha256: digests of the agent's weights and of the file; earlier versions have none.
    """

    seed: int
    weights: NotRequired[str]
    onnx: str
    bytes: int
    sha256: NotRequired[str]
    opset: int
    parity: Parity
    int8: Int8Record


class ExportRecord(FilesRecord):
    """An exported agent: its files, and how fast they answer."""

    latency: Latencies


class ExportRecords(TypedDict):
    """All agents exported together, by name: their latencies were taken in the same minutes.

    left_out: the names of those that cannot be exported, and why.
    """

    exports: dict[str, ExportRecord]
    left_out: dict[str, str]


def load_students(out: Path, students: Sequence[StudentRecord]) -> dict[str, TrainedAgent]:
    """The students of an output directory, by the names of their files."""
    return {
        export_name(student["student"], student["method"]): load_agent(
            out / STUDENTS / student_name(student["student"], student["method"], student["seed"])
        )
        for student in students
    }


def deploy_students(
    pipeline: Pipeline, students: Mapping[str, TrainedAgent], dataset: Dataset
) -> None:
    """Export the teacher and these students of a pipeline, as far as that is not done already."""
    cpu, teacher = torch.device("cpu"), pipeline.teacher
    network = teacher.network
    if exportable(network):
        network = copy.deepcopy(network)
    own = TrainedAgent(network, teacher.outputs, teacher.config, teacher.frames, cpu, [])
    on_cpu = replace(pipeline, evaluator=replace(pipeline.evaluator, device=cpu))
    deploy(
        pipeline.config.out / EXPORT,
        {TEACHER: own, **students},
        dataset.to(cpu),
        lambda path, act: on_cpu.saved_score(path, "int8", act),
        games=pipeline.games,
    )


def is_whole(directory: Path, record: ExportRecord, agent: TrainedAgent, games: int) -> bool:
    """Whether both files are of this agent's weights and as they were written, and the int8 file
    has played as many games."""
    settings = agent.config["settings"]
    if (record["seed"], record.get("weights")) != (settings["seed"], digest_of(agent.network)):
        return False
    if any("sha256" not in file or file_fault(directory, file) for file in files_of(record)):
        return False
    return record["int8"]["evaluation"]["games"] == games


def files_of(record: FilesRecord) -> tuple[FilesRecord | Int8Record, ...]:
    """What is recorded of both files of an agent."""
    return record, record["int8"]


def file_fault(directory: Path, file: FilesRecord | Int8Record) -> str | None:
    """What has happened to a file since it was measured, in words; None: nothing."""
    try:
        content = read_file(directory / file["onnx"], MOST_BYTES)
    except FileNotFoundError:
        return "is lost"
    except (OSError, ValueError):
        return "cannot be read"
    # Earlier versions recorded sizes alone.
    digest = file.get("sha256")
    same = digest is None or sha256(content).hexdigest() == digest
    return None if same and len(content) == file["bytes"] else "is not the file that was measured"


def deploy(
    directory: Path,
    agents: Mapping[str, TrainedAgent],
    dataset: Dataset,
    score: Callable[[Path, Act], GameScores],
    *,
    games: int,
    calls: int = CALLS,
) -> dict[str, ExportRecord]:
    """Export agents into a directory and measure the files, or find all of that done.

    A file that is missing, was altered, or is of other weights is made again, and so is the agent's
    other file; all latencies are then taken again. Agents that are no single network, such as
    ensembles, are left out and noted.

    | argument | meaning |
    | --- | --- |
    | agents | on the CPU, by the names of their files: `teacher`, `net1-kl`, … |
    | dataset | of their game; int8 files are calibrated on states to train on and judged on |
    | | held-out ones, float32 files are compared on held-out ones first |
    | score | plays the games of a score, or loads it from this file |
    | games | of a score |
    | calls | of each network that are timed |

    Raises `UsageError` where packages are missing, `EbuError` where a file's outputs are not
    torch's or it cannot be written; an earlier file is then unchanged.
    """
    require_export()
    left_out = {
        name: ONLY_SINGLE_NETWORKS
        for name, agent in agents.items()
        if not exportable(agent.network)
    }
    wanted = {name: agent for name, agent in agents.items() if name not in left_out}
    before = read_exports(directory)["exports"]
    whole = {
        name: before[name]
        for name, agent in wanted.items()
        if name in before and is_whole(directory, before[name], agent, games)
    }
    if before.keys() == whole.keys() == wanted.keys() and whole:
        return whole
    say(f"exporting {', '.join(name for name in wanted if name not in whole)}")
    for name, agent in wanted.items():
        if agent.device.type != "cpu":
            raise ValueError(f"{name} is on {agent.device}: it is compared and timed on the CPU")
    files: dict[str, FilesRecord] = {
        name: whole[name] if name in whole else _export(directory, name, agent, dataset, score)
        for name, agent in wanted.items()
    }
    taken = _time(directory, wanted, files, dataset, calls)
    exports: dict[str, ExportRecord] = {
        name: {**record, "latency": taken[name]} for name, record in files.items()
    }
    write_record(directory / EXPORTS, {"exports": exports, "left_out": left_out})
    return exports


def _export(
    directory: Path,
    name: str,
    agent: TrainedAgent,
    dataset: Dataset,
    score: Callable[[Path, Act], GameScores],
) -> FilesRecord:
    """Write and measure both files of an agent; raises as `deploy`."""
    path = directory / f"{file_name(name)}.onnx"
    parity = write_checked(agent, path, dataset, name=name)
    content = path.read_bytes()
    return {
        "seed": agent.config["settings"]["seed"],
        "weights": digest_of(agent.network),
        "onnx": path.name,
        "bytes": len(content),
        "sha256": sha256(content).hexdigest(),
        "opset": OPSET,
        "parity": parity,
        "int8": _export_int8(path, content, agent, dataset, score),
    }


def _export_int8(
    path: Path,
    content: bytes,
    agent: TrainedAgent,
    dataset: Dataset,
    score: Callable[[Path, Act], GameScores],
) -> Int8Record:
    """Write the int8 file beside the float32 one, and score and measure it."""
    calibrate, judge = _spread(dataset.train, CALIBRATION_STATES), dataset.held_out
    path8 = path.with_suffix(".int8.onnx")
    content8 = quantise(content, dataset, calibrate)
    policy = OnnxPolicy(content8, path8.name)
    write_whole(path8, content8)
    digest = sha256(content8).hexdigest()
    return {
        "onnx": path8.name,
        "bytes": len(content8),
        "sha256": digest,
        "calibrated_on": len(calibrate),
        "states": len(judge),
        "agreement": compare(agent, policy, dataset, judge)["agreement"],
        "evaluation": score(
            path.parent / f"scores/{path.stem}-{digest[:12]}.int8.json", policy.choose
        ),
    }


def _time(
    directory: Path,
    agents: Mapping[str, TrainedAgent],
    files: Mapping[str, FilesRecord],
    dataset: Dataset,
    calls: int,
) -> dict[str, Latencies]:
    """Time torch and both files of all agents together, on the same held-out states."""
    stacks = [dataset.stacks(index[None]).cpu() for index in dataset.held_out[:TIMED_STATES]]
    arrays = [stack.numpy() for stack in stacks]
    timed: dict[tuple[str, str], Callable[[], object]] = {}
    for name, agent in agents.items():
        policy, policy8 = (OnnxPolicy(directory / file["onnx"]) for file in files_of(files[name]))
        timed[name, "torch"] = _in_turn(agent.outputs_of, stacks)
        timed[name, "onnxruntime"] = _in_turn(policy.outputs_of, arrays)
        timed[name, "int8"] = _in_turn(policy8.outputs_of, arrays)
    taken = latencies(timed, calls=calls)
    return {
        name: {
            "torch": taken[name, "torch"],
            "onnxruntime": taken[name, "onnxruntime"],
            "int8": taken[name, "int8"],
            "threads": 1,
            "batch": 1,
            "calls": calls,
            "hardware": hardware(),
        }
        for name in agents
    }


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
