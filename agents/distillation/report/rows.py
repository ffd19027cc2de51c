"""The rows of a distillation's report: every policy, students over their seeds, and warnings."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast

from agents.architectures import TEACHER
from agents.distillation.deploy.deployment import (
    ExportRecord,
    ExportRecords,
    Latency,
    file_fault,
    files_of,
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
    GameScores,
    MemberRecord,
    StudentRecord,
    TeacherRecord,
    chosen,
    export_name,
    read_record,
    retention,
)
from agents.distillation.report.retention import (
    MethodDifference,
    MethodRow,
    compare_methods,
    floor_of,
    is_above,
    method_row,
    retention_interval,
    weakness,
)
from agents.distillation.settings import SYNTHETIC, WARNINGS
from ebu.errors import UsageError

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
    | above_floor | it is above random play and the best constant action, see `is_above` |
    | retention, retention_95 | share of the teacher's gain on random play; interval over games |
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
    evaluation: GameScores
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


class Report(TypedDict):
    """The content of report.json.

    | key | meaning |
    | --- | --- |
    | members | of an ensemble of teachers; else none |
    | warnings | reasons to doubt the figures, a line each |
    | main | the method of the students that were asked for; others are baselines |
    | rows, methods | single policies, and students over their seeds |
    | comparisons | methods against the main one |
    | exports | by `export_name` |
    | missing | what was not measured, a line each |
    """

    teacher: TeacherRecord
    members: list[MemberRecord]
    warnings: list[str]
    main: str
    rows: list[Row]
    methods: list[MethodRow]
    comparisons: list[MethodDifference]
    exports: dict[str, ExportRecord]
    missing: list[str]


class Records(NamedTuple):
    """What was measured in a distillation.

    | field | meaning |
    | --- | --- |
    | members | of an ensemble of teachers; else none |
    | students | finished ones |
    | main | the method of the students that were asked for, `DistillConfig.main_method` |
    | deployed | exported files |
    | unfinished | names of directories of students that are not finished |
    | faults | of exported files that are lost, altered or of other weights, a line each |
    """

    teacher: TeacherRecord
    members: list[MemberRecord]
    students: list[StudentRecord]
    main: str
    deployed: ExportRecords
    unfinished: list[str]
    faults: list[str]


def read_records(out: Path, main: str) -> Records:
    """The records that an output directory holds so far.

    Raises `UsageError` for a directory without a teacher's record, `EbuError` for damaged records.
    """
    teacher = read_record(out / TEACHER_FILE, TeacherRecord)
    if teacher is None:
        raise UsageError(f"{out} has no {TEACHER_FILE}: name the --out of a distillation")
    ensemble = read_record(out / ENSEMBLE_FILE, EnsembleRecord)
    directories = sorted(path for path in (out / STUDENTS).glob("*") if path.is_dir())
    read = {path.name: read_record(path / RESULT_FILE, StudentRecord) for path in directories}
    deployed = read_exports(out / EXPORT)
    exports = deployed["exports"]
    faults = [
        f"{EXPORT}/{file['onnx']} {fault}"
        for export in exports.values()
        for file in files_of(export)
        if (fault := file_fault(out / EXPORT, file))
    ]
    measured: dict[tuple[str, int | None], str | None]
    measured = {(TEACHER, None): teacher.get("weights")} | {
        (export_name(record["student"], record["method"]), record["seed"]): record.get("weights")
        for record in read.values()
        if record is not None
    }
    for name, export in list(exports.items()):
        weights = measured.get((name, None if name == TEACHER else export["seed"]))
        # Earlier versions did not record them.
        if None not in (weights, export.get("weights")) and weights != export["weights"]:
            faults.append(f"{EXPORT}/{export['onnx']} is of other weights than were scored")
            del exports[name]
    return Records(
        teacher,
        [] if ensemble is None else ensemble["members"],
        [record for record in read.values() if record is not None],
        main,
        deployed,
        [name for name, record in read.items() if record is None],
        [
            f"{fault}: run the same command again, without --no-export, to have it made and "
            "measured again."
            for fault in faults
        ],
    )


def compose(records: Records) -> Report:
    """The report of these records."""
    teacher, members, students, main, deployed, unfinished, faults = records
    # Where several games have one network, all students are of a procedure.
    found = {record["method"] for record in students if is_main(record["method"], main)}
    main = min(found, key=len, default=main)
    # Large ones first, and those of the main method.
    students = sorted(
        students,
        key=lambda s: (
            *(-s["multiply_adds"], s["student"], not is_main(s["method"], main)),
            *_identity(s),
        ),
    )
    groups = [
        list(group) for _, group in itertools.groupby(students, key=lambda s: _identity(s)[:2])
    ]
    best = [chosen(group) for group in groups]
    return {
        "teacher": teacher,
        "members": members,
        "warnings": [*_warnings(teacher, students), *faults],
        "main": main,
        "rows": _rows(teacher, students, main, best, deployed["exports"]),
        "methods": [method_row(group, teacher) for group in groups],
        "comparisons": compare_methods(groups, main),
        "exports": deployed["exports"],
        "missing": [
            *(f"{name} is not finished" for name in unfinished),
            *_not_compared(groups, main),
            *_missing(students, best, deployed),
        ],
    }


def is_main(method: str, main: str) -> bool:
    """Whether a method is the main one, or a procedure of it: a generation, a peer, several games.

    Others have no procedures.
    """
    return method == main or method.startswith(f"{main}-")


def _identity(record: StudentRecord) -> tuple[str, str, int]:
    return record["student"], record["method"], record["seed"]


# --- rows -----------------------------------------------------------------------------------


def _rows(
    teacher: TeacherRecord,
    students: Sequence[StudentRecord],
    main: str,
    best: Sequence[StudentRecord],
    exports: Mapping[str, ExportRecord],
) -> list[Row]:
    """Random play and the best constant action, the teacher, the students, then int8 files."""
    rows = [_row(name, "floor", score, teacher) for name, score in floor_of(teacher).items()]
    exported: list[tuple[Row, ExportRecord]] = []

    def add(
        name: str,
        kind: Kind,
        record: TeacherRecord | StudentRecord,
        export: ExportRecord | None,
        **known: Any,
    ) -> None:
        # Earlier versions recorded 0 for what is not known.
        sizes = {key: record[key] or None for key in ("parameters", "multiply_adds")}
        file = {} if export is None else _file(export["bytes"], export["latency"]["onnxruntime"])
        rows.append(_row(name, kind, record["evaluation"], teacher, **known, **sizes, **file))
        if export is not None:
            exported.append((rows[-1], export))

    add("teacher", "teacher", teacher, exports.get(TEACHER))
    for student in students:
        name, method, seed = _identity(student)
        export = exports.get(export_name(name, method))
        held_out = student["held_out"]
        add(
            name,
            "student" if is_main(method, main) else "baseline",
            student,
            export if export is not None and export["seed"] == seed else None,
            method=method,
            seed=seed,
            chosen=student in best,
            held_out_loss=held_out["loss"],
            agreement=held_out["agreement"],
            regret=held_out["regret"],
            seconds=student["seconds"],
        )
    for row, export in exported:
        kept: Mapping[str, object] = row
        same = {k: kept[k] for k in ("method", "seed", "chosen", "parameters", "multiply_adds")}
        int8, latency = export["int8"], export["latency"]["int8"]
        file = _file(int8["bytes"], latency)
        rows.append(_row(row["name"], "int8", int8["evaluation"], teacher, **same, **file))
    return rows


def _row(name: str, kind: Kind, score: GameScores, teacher: TeacherRecord, **known: Any) -> Row:
    """A policy and its games, and what else is known of it; everything else is None."""
    share, interval = retention(score, teacher), None
    # Both ends of the scale are known.
    if share is not None and score is not teacher["random"] and score is not teacher["evaluation"]:
        interval = retention_interval([score], teacher)
    mean = teacher["evaluation"]["mean"]
    row = {
        **dict.fromkeys(Row.__annotations__),
        "name": name,
        "kind": kind,
        "chosen": False,
        "evaluation": score,
        "above_floor": None if kind == "floor" else is_above(score, *floor_of(teacher).values()),
        "retention": share,
        "retention_95": interval,
        "raw_ratio": score["mean"] / mean if mean > 0 else None,
        **known,
    }
    return cast(Row, row)


def _file(size: int, latency: Latency) -> dict[str, float]:
    return {"bytes": size, "p50_us": latency["p50_us"], "p99_us": latency["p99_us"]}


# --- warnings -------------------------------------------------------------------------------


def _warnings(teacher: TeacherRecord, students: Sequence[StudentRecord]) -> list[str]:
    found = []
    score = teacher["evaluation"]
    if weak := weakness(teacher):
        advice = "play more games" if score["games"] == 1 else "train the teacher further"
        found.append(f"{weak[0].upper()}{weak[1:]}: retention means little. To mend it, {advice}.")
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
        ours: Mapping[str, object] = score
        its: Mapping[str, object] = record["evaluation"]
        if differing := [k for k in ("protocol", "epsilon", "games", "seed") if its[k] != ours[k]]:
            name, method, seed = _identity(record)
            found.append(
                f"{name}, {method}, seed {seed} was scored with another {' and '.join(differing)} "
                "than the teacher: their scores cannot be compared."
            )
    return found


def _not_compared(groups: Sequence[Sequence[StudentRecord]], main: str) -> list[str]:
    """The methods that a single seed, theirs or the main method's, leaves out of comparisons."""
    seeds = {_identity(group[0])[:2]: len(group) for group in groups}
    return [
        f"{name}, {method} is not compared with {main}: two seeds of each are needed (--seeds 3 "
        "--baseline-seeds 3)"
        for (name, method), number in seeds.items()
        if method != main and min(number, seeds.get((name, main), 2)) < 2
    ]


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
