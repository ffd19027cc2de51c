"""The text of a distillation's report, as Markdown; and all files of the report.

DIR/report.md      for people
DIR/report.json    the same as JSON
DIR/pareto.png     score retention against inference cost
"""

from collections.abc import Sequence
from pathlib import Path

from agents.distillation.deploy.deployment import ExportRecord, Latency
from agents.distillation.records import (
    REPORT,
    MemberRecord,
    Score,
    TeacherRecord,
    file_name,
    write_record,
)
from agents.distillation.report.picture import picture
from agents.distillation.report.rows import MethodRow, Report, Row, assemble
from agents.distillation.settings import TEACHER
from ebu.run.files import write_whole

DATA, PICTURE = "report.json", "pareto.png"
NONE = "–"
HOW_TO_READ = """\
*Retained* is (score − random) / (teacher − random) of mean scores: 0 % is random play, 100 % the
teacher. Its 95 % interval is Fieller's over the games of all three; over seeds, in the table of
methods, it is for another student trained alike. The raw ratio, score / teacher, means nothing
where random play scores or scores are negative. Of several seeds the one with the lowest held-out
loss is **chosen**. Agreement: share of held-out states with the teacher's action. Regret: what the
student's action loses there by the teacher's outputs, in their units. *Above the floor*: the
score's interval lies above random play and above the best constant action."""
HOW_TIMED = """\
Inference of one state (batch 1) on one thread, without preprocessing and emulator: median and 99th
percentile, timed in turns, so that ratios hold where a busy machine slows all."""
PARITY = """\
Difference: largest of any output between file and torch, as a share of the outputs' spread within a
state; a file beyond the tolerance is not written. Int8 agreement: share of held-out states, none of
them calibrated on, with the float32 network's action."""


def write_report(out: Path) -> Report:
    """Read what an output directory holds so far and write its report there.

    Raises as `assemble`, and `EbuError` where the disk is full or fails.
    """
    report = assemble(out)
    write_record(out / DATA, report)
    write_whole(out / PICTURE, picture(report["rows"]))
    write_whole(out / REPORT, report_text(report).encode())
    return report


def report_text(report: Report) -> str:
    """The report as Markdown."""
    teacher, rows = report["teacher"], report["rows"]
    parts = [f"# {teacher['game']}: students of {teacher['network']}"]
    parts += [f"**Warning:** {line}" for line in report["warnings"]]
    parts.append(_setting(teacher))
    if report["members"]:
        parts.append(_members(report["members"]))
    parts += [f"![Score retention against inference cost]({PICTURE})"]
    parts += ["## Scores", _scores(rows), HOW_TO_READ]
    if report["methods"]:
        parts += ["## Methods, over their seeds", _methods(report["methods"])]
    parts += ["## Sizes", _sizes(rows)]
    exports = report["exports"]
    if exports:
        parts += ["## CPU inference latency", _latencies(exports), _machine(exports), HOW_TIMED]
        parts += ["## ONNX files", _files(exports), PARITY]
    if report["missing"]:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in report["missing"])]
    return "\n\n".join(parts) + "\n"


def _setting(teacher: TeacherRecord) -> str:
    score, states = teacher["evaluation"], teacher["states"]
    rounds = f" in {states['rounds']} rounds" if states["rounds"] > 1 else ""
    return (
        f"Teacher: {teacher['network']} from `{teacher['run_dir']}`, trained on "
        f"{teacher['frames']:,} frames; {teacher['num_actions']} actions. Every score is the mean "
        f"of {score['games']} games under protocol `{score['protocol']}` with ε = "
        f"{score['epsilon']:g} and seed {score['seed']}, random play aside (ε = 1). States, from "
        f"{states['source']}{rounds}: {states['train']:,} to train on, {states['held_out']:,} of "
        "other episodes held out. "
        f"The teacher's median gap between its two best actions is {teacher['gap']:.4g}; softened "
        f"by τ = {teacher['temperature']:.4g} ({teacher['temperature_setting']}) its entropy is "
        f"{teacher['entropy']:.3f} nats."
    )


def _members(members: Sequence[MemberRecord]) -> str:
    """The members of an ensemble of teachers."""
    return _table(
        ["member of the ensemble", "frames", "τ", "median gap"],
        [
            [
                f"`{member['member']}`",
                f"{member['frames']:,}",
                f"{member['temperature']:.4g}",
                f"{member['gap']:.4g}",
            ]
            for member in members
        ],
    )


def _scores(rows: Sequence[Row]) -> str:
    header = ["policy", "method", "seed", "score, 95 %", "retained, 95 %", "raw ratio"]
    header += ["agreement", "regret", "held-out loss", "above the floor"]
    return _table(
        header,
        [
            [
                _policy(row),
                _cell(row["method"]),
                _cell(row["seed"]),
                _score(row["evaluation"]),
                _retained(row["retention"], row["retention_95"]),
                _figure(row["raw_ratio"], "{:.3f}"),
                _figure(row["agreement"], "{:.1%}"),
                _figure(row["regret"], "{:.4g}"),
                _figure(row["held_out_loss"], "{:.4g}"),
                {None: NONE, True: "yes", False: "no"}[row["above_floor"]],
            ]
            for row in rows
        ],
    )


def _policy(row: Row) -> str:
    name = _code(row["name"]) + (", int8" if row["kind"] == "int8" else "")
    if row["kind"] == "baseline":
        name += " (baseline)"
    return f"**{name}**, chosen" if row["chosen"] and row["kind"] == "student" else name


def _methods(methods: Sequence[MethodRow]) -> str:
    header = ["student", "method", "seeds", "chosen", "score", "retained, 95 % over seeds"]
    header += ["agreement", "regret", "held-out loss"]
    return _table(
        header,
        [
            [
                _code(row["name"]),
                row["method"],
                ", ".join(map(str, row["seeds"])),
                str(row["chosen_seed"]),
                f"{row['score']:,.2f}",
                _retained(row["retention"], row["retention_95"]),
                _figure(row["agreement"], "{:.1%}"),
                _figure(row["regret"], "{:.4g}"),
                _figure(row["held_out_loss"], "{:.4g}"),
            ]
            for row in methods
        ],
    )


def _sizes(rows: Sequence[Row]) -> str:
    """Each network once: its size does not depend on method and seed."""
    known = [row for row in rows if row["parameters"] is not None and row["kind"] != "int8"]
    teacher = known[0]
    sizes = {(row["name"], row["parameters"], row["multiply_adds"]): row for row in known}
    return _table(
        ["network", "parameters", "of the teacher's", "multiply-adds", "of the teacher's"],
        [
            [
                _code(name),
                f"{parameters:,}",
                _of(parameters, teacher["parameters"]),
                f"{multiply_adds:,}",
                _of(multiply_adds, teacher["multiply_adds"]),
            ]
            for name, parameters, multiply_adds in sizes
            if parameters is not None and multiply_adds is not None
        ],
    )


def _latencies(exports: dict[str, ExportRecord]) -> str:
    teacher = exports.get(TEACHER)
    header = ["agent", "torch p50 / p99, µs", "onnxruntime", "int8"]
    if teacher is not None:
        header += ["onnxruntime p50 / teacher's", "int8 p50 / teacher's onnxruntime"]
    rows = []
    for name, export in exports.items():
        taken = export["latency"]
        row = [_code(name), *(_taken(taken[kind]) for kind in ("torch", "onnxruntime", "int8"))]
        if teacher is not None:
            whole = teacher["latency"]["onnxruntime"]["p50_us"]
            row += [_of(taken["onnxruntime"]["p50_us"], whole), _of(taken["int8"]["p50_us"], whole)]
        rows.append(row)
    return _table(header, rows)


def _machine(exports: dict[str, ExportRecord]) -> str:
    taken = next(iter(exports.values()))["latency"]
    return f"Hardware: {taken['hardware']}; {taken['calls']:,} calls of each."


def _files(exports: dict[str, ExportRecord]) -> str:
    header = ["file", "bytes", "int8 bytes", "times smaller", "states compared", "difference"]
    header += ["actions as torch's", "int8 agreement", "int8 calibrated on"]
    rows = []
    for export in exports.values():
        parity, int8 = export["parity"], export["int8"]
        rows.append(
            [
                _code(export["onnx"]),
                f"{export['bytes']:,}",
                f"{int8['bytes']:,}",
                f"{export['bytes'] / int8['bytes']:.2f}",
                f"{parity['states']:,}",
                f"{parity['largest_difference']:.1e} (≤ {parity['tolerance']:g})",
                f"{parity['agreement']:.2%}",
                f"{int8['agreement']:.1%} of {int8['states']:,}",
                f"{int8['calibrated_on']:,}",
            ]
        )
    return _table(header, rows)


# --- cells ----------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(name: str) -> str:
    """A name as code, if it has characters of Markdown."""
    return f"`{name}`" if file_name(name) != name or "_" in name else name


def _cell(value: object) -> str:
    return NONE if value is None else str(value)


def _figure(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _score(score: Score) -> str:
    interval = score["interval_95"]
    mean = f"{score['mean']:,.2f}"
    return mean if interval is None else f"{mean} [{interval[0]:,.2f}, {interval[1]:,.2f}]"


def _retained(share: float | None, interval: Sequence[float] | None) -> str:
    if share is None:
        return NONE
    ends = "" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]"
    return f"{share:.1%}{ends}"


def _of(part: float, whole: float | None) -> str:
    return f"{part / whole:.1%}" if whole else NONE


def _taken(latency: Latency) -> str:
    return f"{latency['p50_us']:,.0f} / {latency['p99_us']:,.0f}"
