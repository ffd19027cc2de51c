"""Trained agents as files to play by: exported, checked, quantised, scored and timed.

DIR/NAME.onnx                    float32
DIR/NAME.int8.onnx               int8
DIR/scores/NAME-seedN.int8.json  the games of an int8 file: played once
DIR/export.json                  what was measured, `ExportRecords`
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from agents.distillation.dataset import StateSet
from agents.distillation.deploy.export import (
    ONLY_SINGLE_NETWORKS,
    OPSET,
    TOLERANCE,
    compare,
    export,
    exportable,
    require_export,
)
from agents.distillation.deploy.int8 import calibration_states, quantised
from agents.distillation.deploy.latency import CALLS, Latency, hardware, latencies
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.distillation.records import Score, file_name, read_record, write_record
from agents.trained import TrainedAgent
from ebu.evaluation import Act
from ebu.run.files import write_whole

EXPORTS = "export.json"
TIMED_STATES = 64


class ParityRecord(TypedDict):
    """The float32 file beside torch, see `export.Parity`, and the largest difference allowed."""

    states: int
    largest_difference: float
    agreement: float
    tolerance: float


class Int8Record(TypedDict):
    """The int8 file.

    | key | meaning |
    | --- | --- |
    | onnx, bytes | file name and size |
    | calibrated_on | number of states |
    | states, agreement | share of these other held-out states with torch's action |
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
    parity: ParityRecord
    int8: Int8Record
    latency: Latencies


class ExportRecords(TypedDict):
    """All agents exported together, by name: their latencies were taken in turns.

    left_out: the names of those that cannot be exported, and why.
    """

    exports: dict[str, ExportRecord]
    left_out: dict[str, str]


def deploy(
    directory: Path,
    agents: Mapping[str, TrainedAgent],
    states: StateSet,
    score: Callable[[Act], Score | None],
    *,
    games: int,
    calls: int = CALLS,
) -> dict[str, ExportRecord] | None:
    """Export agents into a directory and measure the files; None if `score` was told to stop.

    Agents that are no single network over images, such as ensembles, are left out, and noted so.
    Called again, it plays an int8 file's games a second time only where there are to be more.

    | argument | meaning |
    | --- | --- |
    | agents | on the CPU, by the names their files get: `teacher`, `net1-kl`, … |
    | states | of their game; held-out ones are calibrated on and compared first |
    | score | plays the games that agents are scored by, None once told to stop |
    | games | that `score` plays |
    | calls | of each network that are timed |

    Raises `UsageError` where packages are missing, `EbuError` where a file computes something else
    than torch or cannot be written.
    """
    require_export()
    calibrate, judge = calibration_states(states)
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    contestants: dict[tuple[str, str], Callable[[], object]] = {}
    timed = [states.stacks(index[None]).cpu() for index in states.held_out[:TIMED_STATES]]
    for name, agent in agents.items():
        if not exportable(agent.network):
            left_out[name] = ONLY_SINGLE_NETWORKS
            continue
        if agent.device.type != "cpu":
            raise ValueError(f"{name} is on {agent.device}: it is compared and timed on the CPU")
        path = directory / f"{file_name(name)}.onnx"
        path8 = path.with_suffix(".int8.onnx")
        parity = export(agent, path, states, name=name)
        content = path.read_bytes()
        content8 = quantised(content, states, calibrate)
        policy, policy8 = OnnxPolicy(content, path.name), OnnxPolicy(content8, path8.name)
        write_whole(path8, content8)
        seed = agent.config["settings"]["seed"]
        kept = directory / f"scores/{path.stem}-seed{seed}.int8.json"
        evaluation = _scored(kept, games, policy8, score)
        if evaluation is None:
            return None
        found[name] = {
            "seed": seed,
            "onnx": path.name,
            "bytes": len(content),
            "opset": OPSET,
            "parity": {
                "states": parity.states,
                "largest_difference": parity.largest_difference,
                "agreement": parity.agreement,
                "tolerance": TOLERANCE,
            },
            "int8": {
                "onnx": path8.name,
                "bytes": len(content8),
                "calibrated_on": len(calibrate),
                "states": len(judge),
                "agreement": compare(agent, policy8, states, judge).agreement,
                "evaluation": evaluation,
            },
        }
        contestants[name, "torch"] = _in_turn(agent.outputs_of, timed)
        arrays = [stack.numpy() for stack in timed]
        contestants[name, "onnxruntime"] = _in_turn(policy.outputs_of, arrays)
        contestants[name, "int8"] = _in_turn(policy8.outputs_of, arrays)
    taken = latencies(contestants, calls=calls)
    for name, record in found.items():
        record["latency"] = {
            **{kind: taken[name, kind] for kind in ("torch", "onnxruntime", "int8")},
            "threads": 1,
            "batch": 1,
            "calls": calls,
            "hardware": hardware(),
        }
    write_record(directory / EXPORTS, {"exports": found, "left_out": left_out})
    return cast(dict[str, ExportRecord], found)


def read_exports(directory: Path) -> ExportRecords:
    """What `deploy` measured in this directory; empty where nothing was exported.

    Raises `EbuError` for a damaged file.
    """
    records: ExportRecords | None = read_record(directory / EXPORTS, cast(Any, ExportRecords))
    return records or {"exports": {}, "left_out": {}}


def _scored(
    path: Path, games: int, policy: OnnxPolicy, score: Callable[[Act], Score | None]
) -> Score | None:
    """The score in this file if it is of so many games, or the one played for now, kept there."""
    kept = read_record(path, Score)
    if kept is None or kept["games"] != games:
        kept = score(policy.choose)
        if kept is not None:
            write_record(path, kept)
    return kept


def _in_turn(answer: Callable[[Any], object], states: list[Any]) -> Callable[[], object]:
    """Ask for one state after the other: a single one would be answered from warm caches."""
    turns = itertools.cycle(states)
    return lambda: answer(next(turns))
