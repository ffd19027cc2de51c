"""The rows of a distillation's report: every policy, students over their seeds, and warnings."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast

import numpy as np
import scipy.stats
from scipy.optimize import brentq

from agents.distillation.deploy.deployment import (
    ExportRecord,
    ExportRecords,
    Latency,
    read_exports,
)
from agents.distillation.records import (
    ENSEMBLE_FILE,
    EXPORT,
    HARD,
    RESULT_FILE,
    SCRATCH,
    STUDENTS,
    TEACHER_FILE,
    EnsembleRecord,
    MemberRecord,
    Score,
    StudentRecord,
    TeacherRecord,
    chosen,
    export_name,
    read_record,
    retention,
)
from agents.distillation.settings import SYNTHETIC, TEACHER, WARNINGS
from ebu.errors import UsageError
from ebu.statistics import CONFIDENCE

BASELINES = {HARD: "trained on hard labels", SCRATCH: "trained from scratch"}
"""Methods that others are compared with, in words."""
Kind = Literal["teacher", "student", "baseline", "int8", "floor"]


class Row(TypedDict):
    """A policy: its games, and what it costs. None: not measured, or there is none.

    | key | meaning |
    | --- | --- |
    | kind | "floor": random play and the best constant action |
    | method, seed | of a student |
    | chosen | of a student's seeds the one with the lowest held-out loss |
    | evaluation | its games |
    | above_floor | its interval lies above random play and the best constant action |
    | retention, retention_95 | share of the teacher's gain on random play, interval over games |
    | raw_ratio | mean score over the teacher's |
    | agreement, regret | on held-out states, see `HeldOut`; held_out_loss: the main loss there |
    | bytes, p50_us, p99_us | of the exported file, and of its latency in onnxruntime |
    | seconds | of its training |
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


class Report(TypedDict):
    """The content of report.json.

    | key | meaning |
    | --- | --- |
    | members | of an ensemble of teachers; else none |
    | warnings | reasons to doubt the figures, a line each |
    | rows, methods | single policies, and students over their seeds |
    | exports | by `export_name` |
    | missing | what was not measured, a line each |
    """

    teacher: TeacherRecord
    members: list[MemberRecord]
    warnings: list[str]
    rows: list[Row]
    methods: list[MethodRow]
    exports: dict[str, ExportRecord]
    missing: list[str]


def assemble(out: Path) -> Report:
    """The report of what an output directory holds so far.

    Raises `UsageError` for a directory without a teacher's record, `EbuError` for damaged records.
    """
    teacher = read_record(out / TEACHER_FILE, TeacherRecord)
    if teacher is None:
        raise UsageError(f"{out} has no {TEACHER_FILE}: name the --out of a distillation")
    ensemble = read_record(out / ENSEMBLE_FILE, EnsembleRecord)
    directories = sorted(path for path in (out / STUDENTS).glob("*") if path.is_dir())
    read = {path.name: read_record(path / RESULT_FILE, StudentRecord) for path in directories}
    students = [record for record in read.values() if record is not None]
    methods = {record["method"] for record in students}
    # Hard labels are no baseline where there is nothing else.
    main = methods - BASELINES.keys() or methods - {SCRATCH}
    # Large ones first, and those of the main method.
    students.sort(
        key=lambda s: (-s["multiply_adds"], s["student"], s["method"] not in main, *_identity(s))
    )
    deployed = read_exports(out / EXPORT)
    exports = deployed["exports"]
    groups = [
        list(group) for _, group in itertools.groupby(students, key=lambda s: _identity(s)[:2])
    ]
    best = [chosen(group) for group in groups]
    exported: list[tuple[Row, ExportRecord]] = []

    def with_file(row: Row, export: ExportRecord | None) -> Row:
        if export is not None:
            _add_file(row, export["bytes"], export["latency"]["onnxruntime"])
            exported.append((row, export))
        return row

    rows = [
        *_floor_rows(teacher),
        with_file(
            _row("teacher", "teacher", teacher["evaluation"], teacher, sizes=teacher),
            exports.get(TEACHER),
        ),
    ]
    for record in students:
        kind: Kind = "student" if record["method"] in main else "baseline"
        export = exports.get(export_name(record["student"], record["method"]))
        if export is not None and export["seed"] != record["seed"]:
            export = None
        rows.append(with_file(_student_row(record, kind, teacher, record in best), export))
    rows += [_int8_row(row, teacher, export) for row, export in exported]
    unfinished = [f"{name} is not finished" for name, record in read.items() if record is None]
    return {
        "teacher": teacher,
        "members": [] if ensemble is None else ensemble["members"],
        "warnings": _warnings(teacher, students),
        "rows": rows,
        "methods": [_method_row(group, teacher) for group in groups],
        "exports": exports,
        "missing": [*unfinished, *_missing(students, best, deployed)],
    }


def _identity(record: StudentRecord) -> tuple[str, str, int]:
    return record["student"], record["method"], record["seed"]


# --- rows -----------------------------------------------------------------------------------


def _row(name: str, kind: Kind, score: Score, teacher: TeacherRecord, *, sizes: Any = None) -> Row:
    """A policy and its games, with the sizes of its network; everything else is None."""
    share, interval = retention(score, teacher), None
    # Both ends of the scale are known.
    if share is not None and score is not teacher["random"] and score is not teacher["evaluation"]:
        interval = retention_interval(
            score["returns"], teacher["evaluation"]["returns"], teacher["random"]["returns"]
        )
    mean = teacher["evaluation"]["mean"]
    row = cast(Row, dict.fromkeys(Row.__annotations__))
    row["name"], row["kind"], row["chosen"], row["evaluation"] = name, kind, False, score
    if kind != "floor":
        row["above_floor"] = is_above(score, teacher["random"], teacher["constant"]["evaluation"])
    row["retention"], row["retention_95"] = share, None if interval is None else list(interval)
    row["raw_ratio"] = score["mean"] / mean if mean > 0 else None
    if sizes is not None:
        row["parameters"], row["multiply_adds"] = sizes["parameters"], sizes["multiply_adds"]
    return row


def is_above(score: Score, *floor: Score) -> bool | None:
    """Whether an interval lies above all these means; None without an interval."""
    if score["interval_95"] is None:
        return None
    return score["interval_95"][0] > max(other["mean"] for other in floor)


def _floor_rows(teacher: TeacherRecord) -> list[Row]:
    """Random play, then the best constant action."""
    constant = teacher["constant"]
    name = f"always action {constant['action']}"
    return [
        _row("random play", "floor", teacher["random"], teacher),
        _row(name, "floor", constant["evaluation"], teacher),
    ]


def _student_row(record: StudentRecord, kind: Kind, teacher: TeacherRecord, is_best: bool) -> Row:
    row = _row(record["student"], kind, record["evaluation"], teacher, sizes=record)
    row["method"], row["seed"], row["chosen"] = record["method"], record["seed"], is_best
    row["held_out_loss"] = record["held_out"]["loss"]
    row["agreement"], row["regret"] = record["held_out"]["agreement"], record["held_out"]["regret"]
    row["seconds"] = record["seconds"]
    return row


def _int8_row(of: Row, teacher: TeacherRecord, export: ExportRecord) -> Row:
    """The int8 file of another row."""
    int8 = export["int8"]
    row = _row(of["name"], "int8", int8["evaluation"], teacher, sizes=of)
    row["method"], row["seed"], row["chosen"] = of["method"], of["seed"], of["chosen"]
    _add_file(row, int8["bytes"], export["latency"]["int8"])
    return row


def _add_file(row: Row, size: int, latency: Latency) -> None:
    row["bytes"] = size
    row["p50_us"], row["p99_us"] = latency["p50_us"], latency["p99_us"]


def _method_row(group: Sequence[StudentRecord], teacher: TeacherRecord) -> MethodRow:
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


# --- warnings -------------------------------------------------------------------------------


def _warnings(teacher: TeacherRecord, students: Sequence[StudentRecord]) -> list[str]:
    found = []
    score, constant = teacher["evaluation"], teacher["constant"]
    floor = {
        "random play": teacher["random"],
        f"always action {constant['action']}": constant["evaluation"],
    }
    if score["interval_95"] is None:
        found.append(
            "The teacher's score is of a single game and has no interval. Play more games."
        )
    for name, other in floor.items():
        if is_above(score, other) is False:
            assert score["interval_95"] is not None
            low, high = score["interval_95"]
            found.append(
                f"The teacher's score, {low:,.2f} to {high:,.2f}, is not above that of {name}, "
                f"{other['mean']:,.2f}: retention means little. Train the teacher further."
            )
    source = teacher["states"]["source"]
    if source in SYNTHETIC:
        found.append(
            f"All states are synthetic ({source}), the held-out ones too: seeds are chosen on "
            "them, and agreement and regret say nothing about play. Judge by the scores alone."
        )
    methods = {name for record in students for name in re.findall("[a-z_]+", record["method"])}
    for name in sorted(({source} | methods) & WARNINGS.keys()):
        found.append(f"{WARNINGS[name][0].upper()}{WARNINGS[name][1:]}.")
    for record in students:
        other = record["evaluation"]
        same = {
            "protocol": other["protocol"] == score["protocol"],
            "epsilon": other["epsilon"] == score["epsilon"],
            "games": other["games"] == score["games"],
            "seed": other["seed"] == score["seed"],
        }
        if differing := [key for key, equal in same.items() if not equal]:
            name, method, seed = _identity(record)
            found.append(
                f"{name}, {method}, seed {seed} was scored with another {' and '.join(differing)} "
                "than the teacher: their scores cannot be compared."
            )
    return found


def _missing(
    students: Sequence[StudentRecord], best: Sequence[StudentRecord], deployed: ExportRecords
) -> list[str]:
    """What was not measured, a line each."""
    exports, left_out = deployed["exports"], deployed["left_out"]
    methods = {record["method"] for record in students}
    found = [
        f"no student was {how}"
        for method, how in BASELINES.items()
        if students and method not in methods
    ]
    if not students:
        found.append("no student is finished")
    if not exports and not left_out:
        return [*found, "nothing was exported: file sizes, int8 and latency are not known"]
    found += [f"{name} has no file: {why}" for name, why in left_out.items()]
    if TEACHER not in exports and TEACHER not in left_out:
        found.append("the teacher was not exported")
    with_files = set()
    for record in best:
        name, method, seed = _identity(record)
        label = export_name(name, method)
        if label in exports and exports[label]["seed"] != seed:
            found.append(
                f"{name}, {method}: the files are of seed {exports[label]['seed']}, and seed "
                f"{seed} is the chosen one now"
            )
        if label in exports or label in left_out:
            with_files.add(name)
    names = dict.fromkeys(record["student"] for record in students)
    return [*found, *(f"{name} was not exported" for name in names if name not in with_files)]


# --- retention ------------------------------------------------------------------------------


class Mean(NamedTuple):
    """A mean with its squared standard error and the degrees of freedom of that."""

    value: float
    variance: float
    freedom: float


def mean_of(scores: Sequence[float]) -> Mean | None:
    """The mean of games, or of students of several seeds; None for fewer than two."""
    if len(scores) < 2:
        return None
    return Mean(
        float(np.mean(scores)), float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1
    )


def retention_interval(
    student: Sequence[float],
    teacher: Sequence[float],
    random: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
) -> tuple[float, float] | None:
    """The interval (low, high) of a retention, the share (S − R) / (T − R) of mean scores.

    Fieller's (1954): all shares r for which a t test does not reject S − R = r (T − R), given the
    scatter of all three scores. A bootstrap would be too narrow with thirty games, and far too
    narrow over three seeds.

    | argument | meaning |
    | --- | --- |
    | student | scores of the games of one student, or mean scores of students of several seeds |
    | teacher, random | scores of their games |

    Over seeds it is for another student trained alike, over games for more games of this student.
    None with fewer than two scores of any of them, and where the teacher's score cannot be told
    from that of random play: every share is possible then.

    The degrees of freedom are Welch's and Satterthwaite's.
    """
    means = [mean_of(scores) for scores in (student, teacher, random)]
    if None in means:
        return None
    s, t, r = (mean for mean in means if mean is not None)
    tail = (1 - confidence) / 2

    def excess(share: float) -> float:
        """Of the squared difference over what chance may make of it; not above 0 in the set."""
        weights = np.array([1.0, share, 1 - share])
        gap = s.value - share * t.value - (1 - share) * r.value
        return gap**2 - _margin(weights, (s, t, r), tail) ** 2

    gain = t.value - r.value
    # Otherwise `excess` is above 0 for no share that is large enough.
    if gain <= _margin(np.array([0.0, 1.0, 1.0]), (s, t, r), tail) * (1 + 1e-9):
        return None
    share = (s.value - r.value) / gain
    low, high = (_root(excess, share, step) for step in (-1.0, 1.0))
    return low, high


def _margin(weights: np.ndarray, means: Sequence[Mean], tail: float) -> float:
    """How far a sum of weighted means may be from its expectation by chance."""
    parts = weights**2 * [mean.variance for mean in means]
    variance = float(parts.sum())
    if variance == 0:
        return 0.0
    freedom = variance**2 / float((parts**2 / [mean.freedom for mean in means]).sum())
    return float(scipy.stats.t.isf(tail, freedom)) * math.sqrt(variance)


def _root(excess: Callable[[float], float], inside: float, step: float) -> float:
    """Where `excess` rises above 0 on the way from a point where it does not."""
    if excess(inside + step * 1e-12) > 0:
        return inside
    while excess(inside + step) <= 0:
        step *= 2
    return float(brentq(excess, inside, inside + step))
