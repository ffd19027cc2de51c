"""The report of a distillation: everything that was measured, side by side.

DIR/report.md      for people
DIR/report.json    the same as JSON
DIR/pareto.png     what is kept against what it costs
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from agents.distillation.deploy import ExportRecord, ExportRecords, read_exports
from agents.distillation.experimental import EXPERIMENTAL
from agents.distillation.experimental.ensembles import EnsembleRecord, MemberRecord
from agents.distillation.records import (
    StudentRecord,
    TeacherRecord,
    chosen,
    file_name,
    read_record,
    write_record,
)
from agents.distillation.report.picture import picture
from agents.distillation.report.rows import (
    Kind,
    MethodRow,
    Row,
    above,
    floor_rows,
    int8_row,
    method_row,
    student_row,
    teacher_row,
)
from agents.distillation.report.text import report_text
from agents.distillation.sources import MADE_UP
from ebu.errors import UsageError
from ebu.run.files import write_whole

HARD, SCRATCH = "hard", "from-scratch"
BASELINES = {HARD: "taught hard labels", SCRATCH: "trained on games from scratch"}
"""Methods that others are compared with, by what they are called."""
TEACHER = "teacher"
EXPORT, STUDENTS, ENSEMBLE = "export", "students", "ensemble.json"
REPORT, DATA, PICTURE = "report.md", "report.json", "pareto.png"


class Report(TypedDict):
    """What report.json holds.

    | key | meaning |
    | --- | --- |
    | members | of an ensemble of teachers; else none |
    | warnings | what forbids to take the figures for what they seem, a line each |
    | rows, methods | single players, and students over their seeds |
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


def write_report(out: Path) -> Report:
    """Read what a distillation's directory holds and write its report there.

    It can be written at any time once the teacher is scored: what is not there yet is said.

    Raises `UsageError` for a directory without a teacher's record, `EbuError` for damaged records
    and where the disk is full or fails.
    """
    report = assemble(out)
    write_record(out / DATA, report)
    write_whole(out / PICTURE, picture(report["rows"]))
    text = report_text(report, PICTURE)
    write_whole(out / REPORT, text.encode())
    return report


def assemble(out: Path) -> Report:
    """The report's content; raises as `write_report`."""
    teacher = read_record(out / "teacher.json", TeacherRecord)
    if teacher is None:
        raise UsageError(f"{out} has no teacher.json: name the --out of a distillation")
    ensemble: EnsembleRecord | None = read_record(out / ENSEMBLE, cast(Any, EnsembleRecord))
    directories = sorted(path for path in (out / STUDENTS).glob("*") if path.is_dir())
    read = {path.name: read_record(path / "result.json", StudentRecord) for path in directories}
    students = [record for record in read.values() if record is not None]
    main = _main(students)
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
    players: list[tuple[Row, ExportRecord | None]] = [(row, None) for row in floor_rows(teacher)]
    export = exports.get(TEACHER)
    players.append((teacher_row(teacher, export), export))
    for record in students:
        export = _export_of(record, exports)
        kind: Kind = "student" if record["method"] in main else "baseline"
        is_chosen = record in best
        row = student_row(record, kind, teacher, export, is_chosen=is_chosen)
        players.append((row, export))
    int8 = [int8_row(row, teacher, export) for row, export in players if export is not None]
    unfinished = [f"{name} is not finished" for name, record in read.items() if record is None]
    return {
        "teacher": teacher,
        "members": [] if ensemble is None else ensemble["members"],
        "warnings": _warnings(teacher, students),
        "rows": [*(row for row, _ in players), *int8],
        "methods": [method_row(group, teacher) for group in groups],
        "exports": exports,
        "missing": [*unfinished, *_missing(students, best, deployed)],
    }


def export_name(student: str, method: str) -> str:
    """The name under which a student of this method is exported, `teacher` being the teacher's."""
    return f"{file_name(student)}-{method}"


def _identity(record: StudentRecord) -> tuple[str, str, int]:
    return record["student"], record["method"], record["seed"]


def _export_of(record: StudentRecord, exports: dict[str, ExportRecord]) -> ExportRecord | None:
    """The export of this student and method, if it was this seed's."""
    export = exports.get(export_name(record["student"], record["method"]))
    return export if export is not None and export["seed"] == record["seed"] else None


def _main(students: Sequence[StudentRecord]) -> set[str]:
    """The methods that are no baselines: hard labels are none where there is nothing else."""
    methods = {record["method"] for record in students}
    return methods - BASELINES.keys() or methods - {SCRATCH}


# --- what must be said ----------------------------------------------------------------------


def _warnings(teacher: TeacherRecord, students: Sequence[StudentRecord]) -> list[str]:
    found = []
    score, constant = teacher["evaluation"], teacher["constant"]
    floor = {
        "random play": teacher["random"],
        f"always action {constant['action']}": constant["evaluation"],
    }
    if score["interval_95"] is None:
        found.append("The teacher was scored by a single game: it has no interval. Play more.")
    for name, other in floor.items():
        if above(score, other) is False:
            assert score["interval_95"] is not None
            low, high = score["interval_95"]
            found.append(
                f"The teacher's score, {low:,.2f} to {high:,.2f}, is not above that of {name}, "
                f"{other['mean']:,.2f}: keeping it means little. Train the teacher on."
            )
    source = teacher["states"]["source"]
    if source in MADE_UP:
        found.append(
            f"All states are made up ({source}), those held out too: seeds are chosen on them, and "
            "agreement and regret say nothing of play. The scores alone are of the game."
        )
    methods = {name for record in students for name in re.findall("[a-z_]+", record["method"])}
    found += [
        _sentence(EXPERIMENTAL[name]) for name in sorted({source} | methods) if name in EXPERIMENTAL
    ]
    setting = ("protocol", "epsilon", "games", "seed")
    for record in students:
        differing = [key for key in setting if record["evaluation"][key] != score[key]]  # type: ignore[literal-required]
        if differing:
            name, method, seed = _identity(record)
            found.append(
                f"{name}, {method}, seed {seed} was scored with another {' and '.join(differing)} "
                "than the teacher: their scores cannot be compared."
            )
    return found


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _missing(
    students: Sequence[StudentRecord],
    best: Sequence[StudentRecord],
    deployed: ExportRecords,
) -> list[str]:
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
        export = exports.get(export_name(name, method))
        if export is not None:
            with_files.add(name)
            if export["seed"] != seed:
                found.append(
                    f"{name}, {method}: the files are of seed {export['seed']}, and seed {seed} is "
                    "the chosen one now"
                )
        elif export_name(name, method) in left_out:
            with_files.add(name)
    names = dict.fromkeys(record["student"] for record in students)
    return [*found, *(f"{name} was not exported" for name in names if name not in with_files)]
