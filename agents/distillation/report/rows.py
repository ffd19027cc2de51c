"""The rows of a distillation's report: players and what they take, students over their seeds."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, cast

import numpy as np

from agents.distillation.deploy import ExportRecord
from agents.distillation.records import Score, StudentRecord, TeacherRecord, chosen, retention
from agents.distillation.report.retention import retention_interval

Kind = Literal["teacher", "student", "baseline", "int8", "floor"]


class Row(TypedDict):
    """One player: its games, and what it takes. None: not measured, or there is none.

    | key | meaning |
    | --- | --- |
    | kind | "floor": what needs no teacher, random play and the best constant action |
    | method, seed | of a student |
    | chosen | of a student's seeds the one with the lowest held-out loss |
    | evaluation | its games |
    | above_floor | its interval lies above random play and the best constant action |
    | retention, retention_95 | share of the teacher's gain on random play, interval over games |
    | raw_ratio | mean score over the teacher's |
    | agreement, regret | on held-out states, see `HeldOut`; held_out_loss: the main loss there |
    | bytes, p50_us, p99_us | of the exported file, and of its answers in onnxruntime |
    | seconds | that training it took |
    """

    name: str
    kind: Kind
    method: str | None
    seed: int | None
    chosen: bool
    evaluation: Score
    above_floor: bool | None
    retention: float | None
    retention_95: list[float] | None
    raw_ratio: float | None
    held_out_loss: float | None
    agreement: float | None
    regret: float | None
    parameters: int | None
    multiply_adds: int | None
    bytes: int | None
    p50_us: float | None
    p99_us: float | None
    seconds: float | None


class MethodRow(TypedDict):
    """All seeds of one student and method: means, and the retention's interval over the seeds."""

    name: str
    method: str
    seeds: list[int]
    chosen_seed: int
    score: float
    retention: float | None
    retention_95: list[float] | None
    held_out_loss: float
    agreement: float
    regret: float


def _row(name: str, kind: Kind, score: Score, teacher: TeacherRecord, **known: Any) -> Row:
    """A player by its games, with what else is known of it."""
    gained, interval = retention(score, teacher), None
    # Of both ends of the scale there is nothing to estimate.
    if gained is not None and score is not teacher["random"] and score is not teacher["evaluation"]:
        interval = retention_interval(
            score["returns"], teacher["evaluation"]["returns"], teacher["random"]["returns"]
        )
    mean = teacher["evaluation"]["mean"]
    row: Row = {
        "name": name,
        "kind": kind,
        "method": None,
        "seed": None,
        "chosen": False,
        "evaluation": score,
        "above_floor": above(score, teacher["random"], teacher["constant"]["evaluation"]),
        "retention": gained,
        "retention_95": None if interval is None else list(interval),
        "raw_ratio": score["mean"] / mean if mean > 0 else None,
        "held_out_loss": None,
        "agreement": None,
        "regret": None,
        "parameters": None,
        "multiply_adds": None,
        "bytes": None,
        "p50_us": None,
        "p99_us": None,
        "seconds": None,
    }
    return cast(Row, row | known)


def above(score: Score, *floor: Score) -> bool | None:
    """Whether an interval lies above all these means; None without an interval."""
    if score["interval_95"] is None:
        return None
    return score["interval_95"][0] > max(other["mean"] for other in floor)


def floor_rows(teacher: TeacherRecord) -> list[Row]:
    """Random play, then the best constant action."""
    constant = teacher["constant"]
    name = f"always action {constant['action']}"
    rows = [
        _row("random play", "floor", teacher["random"], teacher),
        _row(name, "floor", constant["evaluation"], teacher),
    ]
    for row in rows:
        row["above_floor"] = None
    return rows


def teacher_row(teacher: TeacherRecord, export: ExportRecord | None) -> Row:
    """The teacher; `export` where it was exported."""
    return _row(
        "teacher",
        "teacher",
        teacher["evaluation"],
        teacher,
        parameters=teacher["parameters"],
        multiply_adds=teacher["multiply_adds"],
        **_file(export),
    )


def student_row(
    record: StudentRecord,
    kind: Kind,
    teacher: TeacherRecord,
    export: ExportRecord | None,
    *,
    is_chosen: bool,
) -> Row:
    """A student of one seed; `export` where it was exported."""
    return _row(
        record["student"],
        kind,
        record["evaluation"],
        teacher,
        method=record["method"],
        seed=record["seed"],
        chosen=is_chosen,
        held_out_loss=record["held_out"]["loss"],
        agreement=record["held_out"]["agreement"],
        regret=record["held_out"]["regret"],
        parameters=record["parameters"],
        multiply_adds=record["multiply_adds"],
        seconds=record["seconds"],
        **_file(export),
    )


def _file(export: ExportRecord | None) -> dict[str, Any]:
    if export is None:
        return {}
    return {"bytes": export["bytes"], **export["latency"]["onnxruntime"]}


def int8_row(row: Row, teacher: TeacherRecord, export: ExportRecord) -> Row:
    """The int8 file of what stands in another row."""
    int8 = export["int8"]
    return _row(
        row["name"],
        "int8",
        int8["evaluation"],
        teacher,
        method=row["method"],
        seed=row["seed"],
        chosen=row["chosen"],
        parameters=row["parameters"],
        multiply_adds=row["multiply_adds"],
        bytes=int8["bytes"],
        **export["latency"]["int8"],
    )


def method_row(group: Sequence[StudentRecord], teacher: TeacherRecord) -> MethodRow:
    """All seeds of one student and method."""
    scores = [record["evaluation"]["mean"] for record in group]
    shares = [retention(record["evaluation"], teacher) for record in group]
    gained = [share for share in shares if share is not None]
    interval = None
    if gained:
        interval = retention_interval(
            scores, teacher["evaluation"]["returns"], teacher["random"]["returns"]
        )
    held_out = [record["held_out"] for record in group]
    return {
        "name": group[0]["student"],
        "method": group[0]["method"],
        "seeds": [record["seed"] for record in group],
        "chosen_seed": chosen(group)["seed"],
        "score": float(np.mean(scores)),
        "retention": float(np.mean(gained)) if gained else None,
        "retention_95": None if interval is None else list(interval),
        "held_out_loss": float(np.mean([found["loss"] for found in held_out])),
        "agreement": float(np.mean([found["agreement"] for found in held_out])),
        "regret": float(np.mean([found["regret"] for found in held_out])),
    }
