"""The text of a distillation's report, as Markdown; and all files of the report.

DIR/report.md      for people
DIR/report.json    the same as JSON
DIR/pareto.png     score retention against inference cost
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from agents.architectures import TEACHER
from agents.distillation.deploy.deployment import (
    ExportRecord,
    Latencies,
    Latency,
)
from agents.distillation.deploy.onnx_policy import Parity
from agents.distillation.records import (
    REPORT,
    GameScores,
    MemberRecord,
    TeacherRecord,
    file_name,
    write_record,
)
from agents.distillation.report.picture import picture
from agents.distillation.report.retention import MethodDifference, MethodRow, weakness
from agents.distillation.report.rows import Report, Row, compose, read_records
from ebu.run.files import write_whole
from ebu.run.markdown import NONE, table_of
from ebu.statistics import CONFIDENCE

DATA, PICTURE = "report.json", "pareto.png"
HOW_TO_READ = """\
*Retained* is (score − random) / (teacher − random) of mean scores: 0 % is random play, 100 % the
teacher. All have played the same games, and every interval is of differences within a game; this
one is Fieller's, of this one student over games. The raw ratio, score / teacher, means nothing
where random play scores or scores are negative. Of several seeds the one with the lowest held-out
loss is **chosen**. Agreement: share of held-out states with the teacher's action. Regret: what the
student's action loses there by the teacher's outputs, in their units. *Above the floor*: the score
is above random play and above the best constant action, by the intervals of the differences."""
HOW_MANY_SEEDS = """\
*Retained* is here the mean over seeds. Its interval is a confidence interval of the method: of the
mean over students of all seeds and all games. *Another student* is a prediction: what one more
student of the method, with a seed of its own, may retain in as many games. Both need two seeds."""
HOW_COMPARED = """\
Mean score minus that of the main method, `{main}`, for the same student in the same games. Games
and the seeds of both methods count as drawn, and methods may scatter differently. The intervals
hold all together with 95 % (Bonferroni). p: that there is no difference, corrected for the number
of comparisons (Holm); *higher* and *lower* are said where it is below 0.05. Two intervals of
retention that overlap, or do not, compare nothing."""
HOW_TIMED = """\
Inference of one state (batch 1) on one thread, without preprocessing and emulator: median and 99th
percentile."""
PARITY = """\
Difference: largest of any output between file and torch, as a share of the outputs' spread within a
state; a file beyond the tolerance is not written. Int8 agreement: share of held-out states, none of
them calibrated on, with the float32 network's action."""


def write_report(out: Path, main: str) -> Report:
    """Write the report of what an output directory holds so far; `main`: see `Records`.

    Raises as `read_records`, and `EbuError` where the disk is full or fails.
    """
    report = compose(read_records(out, main))
    write_files(out, report)
    return report


def write_files(out: Path, report: Report) -> None:
    """Write a report's files. Raises `EbuError` where the disk is full or fails."""
    write_record(out / DATA, report)
    weak = weakness(report["teacher"]) is not None
    write_whole(out / PICTURE, picture(report["rows"], weak=weak))
    write_whole(out / REPORT, report_text(report).encode(errors="backslashreplace"))


def report_text(report: Report) -> str:
    """The report as Markdown."""
    teacher, rows = report["teacher"], report["rows"]
    parts = [f"# {teacher['game']}: students of {teacher['network']}"]
    parts += [f"**Warning:** {line}" for line in report["warnings"]]
    parts.append(_setting(teacher))
    if report["members"]:
        parts.append(_members(report["members"]))
    parts += [f"![Score retention against inference cost]({PICTURE})"]
    weak = [f"**Weak teacher:** {why}."] if (why := weakness(teacher)) else []
    parts += ["## Scores", *weak, _scores(rows), HOW_TO_READ]
    if report["methods"]:
        parts += ["## Methods, over their seeds", *weak, _methods(report["methods"])]
        parts += [HOW_MANY_SEEDS]
    if report["comparisons"]:
        parts += ["## Methods compared", _comparisons(report["comparisons"])]
        parts += [HOW_COMPARED.format(main=report["main"])]
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
    human = score["human_normalised"]
    of_human = "" if human is None else f", {human:.1%} human-normalised"
    rounds = f" in {states['rounds']} rounds" if states["rounds"] > 1 else ""
    frames = f", trained on {teacher['frames']:,} frames" if teacher["frames"] else ""
    return (
        f"Teacher: {teacher['network']} from `{teacher['run_dir']}`{frames}; "
        f"{teacher['num_actions']} actions. It scores "
        f"{score_cell(score)}{of_human}. Every score is the mean "
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
    return table_of(
        members,
        ("member of the ensemble", lambda member: f"`{member['member']}`"),
        ("frames", lambda member: _count(member["frames"])),
        ("τ", lambda member: f"{member['temperature']:.4g}"),
        ("median gap", lambda member: f"{member['gap']:.4g}"),
    )


def _scores(rows: Sequence[Row]) -> str:
    above = {None: NONE, True: "yes", False: "no"}
    return table_of(
        rows,
        ("policy", _policy),
        ("method", lambda row: _cell(row["method"])),
        ("seed", lambda row: _cell(row["seed"])),
        ("score, 95 %", lambda row: score_cell(row["evaluation"])),
        ("retained, 95 %", lambda row: share_cell(row["retention"], row["retention_95"])),
        ("raw ratio", lambda row: _figure(row["raw_ratio"], "{:.3f}")),
        ("agreement", lambda row: _figure(row["agreement"], "{:.1%}")),
        ("regret", lambda row: _figure(row["regret"], "{:.4g}")),
        ("held-out loss", lambda row: _figure(row["held_out_loss"], "{:.4g}")),
        ("above the floor", lambda row: above[row["above_floor"]]),
    )


def _policy(row: Row) -> str:
    name = _code(row["name"]) + (", int8" if row["kind"] == "int8" else "")
    if row["kind"] == "baseline":
        name += " (baseline)"
    return f"**{name}**, chosen" if row["chosen"] and row["kind"] == "student" else name


def _methods(methods: Sequence[MethodRow]) -> str:
    return table_of(
        methods,
        ("student", lambda row: _code(row["name"])),
        ("method", lambda row: row["method"]),
        ("seeds", lambda row: ", ".join(map(str, row["seeds"]))),
        ("chosen", lambda row: str(row["chosen_seed"])),
        ("score", lambda row: f"{row['score']:,.2f}"),
        ("retained, 95 % of the method", lambda r: share_cell(r["retention"], r["retention_95"])),
        ("another student, 95 %", lambda row: interval_cell(row["another_95"])),
        ("agreement", lambda row: f"{row['agreement']:.1%}"),
        ("regret", lambda row: f"{row['regret']:.4g}"),
        ("held-out loss", lambda row: f"{row['held_out_loss']:.4g}"),
    )


def _comparisons(comparisons: Sequence[MethodDifference]) -> str:
    return table_of(
        comparisons,
        ("student", lambda row: _code(row["name"])),
        ("method", lambda row: row["method"]),
        ("score − main method's, 95 % together", gap_cell),
        ("p (Holm)", lambda row: "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"),
        ("found", verdict),
    )


def gap_cell(row: MethodDifference) -> str:
    """A difference of scores and its interval."""
    low, high = row["together_95"]
    return f"{row['difference']:+,.2f} [{low:+,.2f}, {high:+,.2f}]"


def verdict(row: MethodDifference) -> str:
    """What a comparison has found."""
    if row["p_value"] >= 1 - CONFIDENCE:
        return "no difference shown"
    return "higher" if row["difference"] > 0 else "lower"


def _sizes(rows: Sequence[Row]) -> str:
    """Each network once: its size does not depend on method and seed."""
    networks = [row for row in rows if row["kind"] not in ("floor", "int8")]
    order = [(row["name"], row["parameters"], row["multiply_adds"]) for row in networks]
    # The teacher comes first.
    _, parameters, multiply_adds = order[0]
    return table_of(
        list(dict.fromkeys(order)),
        ("network", lambda size: _code(size[0])),
        ("parameters", lambda size: _count(size[1])),
        ("of the teacher's", lambda size: _of(size[1], parameters)),
        ("multiply-adds", lambda size: _count(size[2])),
        ("of the teacher's", lambda size: _of(size[2], multiply_adds)),
    )


def _count(number: int | None) -> str:
    """A number of parameters or frames; policies from elsewhere do not tell all of theirs."""
    return f"{number:,}" if number else NONE


def _latencies(exports: dict[str, ExportRecord]) -> str:
    columns: list[tuple[str, Callable[[tuple[str, Latencies]], str]]] = [
        ("agent", lambda each: _code(each[0])),
        ("torch p50 / p99, µs", lambda each: _percentiles(each[1]["torch"])),
        ("onnxruntime", lambda each: _percentiles(each[1]["onnxruntime"])),
        ("int8", lambda each: _percentiles(each[1]["int8"])),
    ]
    if TEACHER in exports:
        whole = exports[TEACHER]["latency"]["onnxruntime"]["p50_us"]
        columns += [
            (
                "onnxruntime p50 / teacher's",
                lambda each: _of(each[1]["onnxruntime"]["p50_us"], whole),
            ),
            (
                "int8 p50 / teacher's onnxruntime",
                lambda each: _of(each[1]["int8"]["p50_us"], whole),
            ),
        ]
    return table_of([(name, export["latency"]) for name, export in exports.items()], *columns)


def _machine(exports: dict[str, ExportRecord]) -> str:
    latency = next(iter(exports.values()))["latency"]
    return f"Hardware: {latency['hardware']}; {latency['calls']:,} calls of each."


def _files(exports: dict[str, ExportRecord]) -> str:
    return table_of(
        list(exports.values()),
        ("file", lambda export: _code(export["onnx"])),
        ("bytes", lambda export: f"{export['bytes']:,}"),
        ("int8 bytes", lambda export: f"{export['int8']['bytes']:,}"),
        ("times smaller", lambda export: f"{export['bytes'] / export['int8']['bytes']:.2f}"),
        ("states compared", lambda export: f"{export['parity']['states']:,}"),
        ("difference", lambda export: _difference(export["parity"])),
        ("actions as torch's", lambda export: f"{export['parity']['agreement']:.2%}"),
        ("int8 agreement", lambda e: f"{e['int8']['agreement']:.1%} of {e['int8']['states']:,}"),
        ("int8 calibrated on", lambda export: f"{export['int8']['calibrated_on']:,}"),
    )


# --- cells ----------------------------------------------------------------------------------


def _code(name: str) -> str:
    """A name as code, if it has characters of Markdown."""
    return f"`{name}`" if file_name(name) != name or "_" in name else name


def _cell(value: object) -> str:
    return NONE if value is None else str(value)


def _figure(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def score_cell(score: GameScores) -> str:
    """A mean score and its interval."""
    interval = score["interval_95"]
    mean = f"{score['mean']:,.2f}"
    return mean if interval is None else f"{mean} [{interval[0]:,.2f}, {interval[1]:,.2f}]"


def share_cell(share: float | None, interval: Sequence[float] | None) -> str:
    """A retention and its interval."""
    if share is None:
        return NONE
    return f"{share:.1%}" if interval is None else f"{share:.1%} {interval_cell(interval)}"


def interval_cell(interval: Sequence[float] | None) -> str:
    """An interval of a retention."""
    return NONE if interval is None else f"[{interval[0]:.1%}, {interval[1]:.1%}]"


def _of(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.1%}" if part and whole else NONE


def _difference(parity: Parity) -> str:
    return f"{parity['largest_difference']:.1e} (≤ {parity['tolerance']:g})"


def _percentiles(latency: Latency) -> str:
    return f"{latency['p50_us']:,.0f} / {latency['p99_us']:,.0f}"
