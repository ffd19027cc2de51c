"""Make every figure of the distillation's documentation from the committed report.json files.

    .venv/bin/python -m docs.results.distillation_pages

Reads docs/results/distillation/**/report.json and writes next to it, by today's statistics,
report.md and pareto.png; then the page docs/results/distillation/README.md, and the figures of
CartPole in docs/distillation_teachers.md. Settings that reports do not record are in settings.json.
Run twice it changes nothing.
"""

import json
import textwrap
from pathlib import Path
from typing import Any, cast

import numpy as np

from agents.distillation.deploy.deployment import ExportRecord
from agents.distillation.records import StudentRecord, TeacherRecord
from agents.distillation.report.retention import MethodRow
from agents.distillation.report.rows import Records, Report, compose
from agents.distillation.report.text import (
    gap_cell,
    interval_cell,
    score_cell,
    share_cell,
    verdict,
    write_files,
)
from docs.results.marked import replace_marked
from ebu.run.markdown import NONE, table_of
from ebu.statistics import mean_interval

DATA = Path(__file__).parent / "distillation"
PAGE = DATA / "README.md"
EXAMPLE = Path(__file__).parents[1] / "distillation_teachers.md"
PLAYED = Path(__file__).parent / "data"
TABLE = "table-"
"""Directories of comparisons in one game each: table-breakout."""
RETAINED = "retained, 95 % of the method"


def read_report(path: Path) -> Report:
    """A saved report, composed again from the records in it."""
    saved: dict[str, Any] = json.loads(path.read_text())
    students = [student_of(row) for row in saved["rows"] if row["kind"] in ("student", "baseline")]
    deployed: Any = {"exports": saved["exports"], "left_out": {}}
    teacher, members = saved["teacher"], saved["members"]
    return compose(Records(teacher, members, students, saved["main"], deployed, [], []))


def size_of(teacher: TeacherRecord) -> int:
    """Its parameters, which the file of a run tells."""
    assert teacher["parameters"] is not None
    return teacher["parameters"]


def student_of(row: dict[str, Any]) -> StudentRecord:
    """The record that a row was made of, as far as reports use it."""
    kept = ("method", "seed", "parameters", "multiply_adds", "seconds", "evaluation")
    held_out = {"loss": row["held_out_loss"], **{k: row[k] for k in ("agreement", "regret")}}
    record = {"student": row["name"], "held_out": held_out, **{key: row[key] for key in kept}}
    return cast(StudentRecord, record)


def main() -> None:
    """Write all reports and the page."""
    reports = {}
    for path in sorted(DATA.glob("**/report.json")):
        reports[str(path.parent.relative_to(DATA))] = report = read_report(path)
        write_files(path.parent, report)
    PAGE.write_text(page(reports))
    EXAMPLE.write_text(with_figures(EXAMPLE.read_text(), reports["cartpole"]))


def settings_of(name: str) -> dict[str, int]:
    """What a report does not record of its commands."""
    found: dict[str, int] = json.loads((DATA / "settings.json").read_text())[name]
    return found


def with_figures(text: str, report: Report) -> str:
    """The page of the example on CartPole, with the figures of its report."""
    return replace_marked(text, "figures of CartPole", lambda _: cartpole(report))


def page(reports: dict[str, Report]) -> str:
    """The page of results, as Markdown."""
    students, methods = reports["."], reports["methods"]
    parts = [
        "# Distillation, measured",
        "This page and the reports it links are made from their `report.json` by one command:",
        "    .venv/bin/python -m docs.results.distillation_pages",
        "The [methods](../../distillation_methods.md) have the commands that measured them. How to "
        "read the intervals: [the report](../../distillation_report.md#statistics).",
        "## Methods by game",
        *compared_by_game(reports),
        "## An earlier teacher",
        "What follows was measured before four changes to `distill.py`: states come from whole "
        "games (ec7c423; before, games in progress were cut off), actions that do the same are "
        "left out of the gap behind `--temperature auto` (e3861ab), latency is timed in blocks, "
        "and int8 files are calibrated on training states (both 74f23fd). The same commands give "
        "other figures today.",
        teacher_text(students["teacher"], methods["teacher"]),
        "## Sizes",
        sizes(students),
        "![Score retention against inference cost](pareto.png)",
        "All students, latencies and files: [report](report.md).",
        "## int8",
        int8(students),
        "## Methods",
        method_table(methods),
        "[All students](methods/report.md); `hinton` of values is of [another directory]"
        "(values/report.md), in the same games.",
        method_text(methods, students),
        values_text(reports["values"]),
        "## Without frames of the game",
        synthetic(reports),
    ]
    return "\n\n".join(parts) + "\n"


# --- parts of the page ----------------------------------------------------------------------


def compared_by_game(reports: dict[str, Report]) -> list[str]:
    """The main table: the methods in each game, by the default of updates."""
    parts = []
    for name, report in reports.items():
        if name.startswith(TABLE):
            title = report["teacher"]["game"].replace("_", " ").title()
            parts += [
                f"### {title}",
                game_text(report, settings_of(name)["updates"]),
                method_table(report),
                f"{compared_text(report)} These verdicts hold for all "
                f"{len(report['comparisons'])} comparisons together. [All students]"
                f"({name}/report.md)",
            ]
    return parts


def game_text(report: Report, updates: int) -> str:
    """The teacher of a game, and how its students were trained."""
    teacher = report["teacher"]
    score, constant, states = teacher["evaluation"], teacher["constant"], teacher["states"]
    return (
        f"The teacher, a network `{teacher['network']}` with {teacher['num_actions']} actions "
        f"trained on {teacher['frames']:,} frames, scores {score_cell(score)} in {score['games']} "
        f"games, {score['human_normalised'] or 0:.0%} human-normalised. Random play: "
        f"{score_cell(teacher['random'])}; the best constant action: "
        f"{score_cell(constant['evaluation'])}. The median gap between its two best actions is "
        f"{teacher['gap']:.2f}. Each student takes {updates:,} updates, the default, on "
        f"{states['train']:,} states; {len(report['methods'][0]['seeds'])} seeds of each method."
    )


def teacher_text(first: TeacherRecord, second: TeacherRecord) -> str:
    """The teacher, in the games of the sizes and in those of the methods."""
    other = json.loads((PLAYED / "breakout-ebu-seed0.evaluation.json").read_text())
    score, again = first["evaluation"], second["evaluation"]
    constant = [score_cell(record["constant"]["evaluation"]) for record in (first, second)]
    return (
        f"All students are of one run of EBU on {first['game'].title()}, of {first['frames']:,} "
        f"frames. It scores {score_cell(score)} in {score['games']} games, "
        f"{score['human_normalised'] or 0:.0%} human-normalised, and {score_cell(again)} in the "
        f"{again['games']} games of the comparison of methods, which are other games. Random play: "
        f"{score_cell(first['random'])} and {score_cell(second['random'])}; the best constant "
        f"action: {constant[0]} and {constant[1]}. It is not the run of [the results]"
        f"(../ebu_dqn.md), which has {other['trained_frames']:,} frames and scores "
        f"{other['mean']:.2f}. It is a weak player: students of a strong one may differ. The "
        f"median gap between its two best actions is {first['gap']:.2f}; softened by it, its "
        f"policy has an entropy of {first['entropy']:.2f} nats."
    )


def sizes(report: Report) -> str:
    """The students of the main method, by their names."""
    teacher, exports = report["teacher"], report["exports"]
    rows = [row for row in report["methods"] if row["method"] == report["main"]]
    parameters = {row["name"]: row["parameters"] or 0 for row in report["rows"]}

    def latency(name: str) -> float:
        return exports[name]["latency"]["onnxruntime"]["p50_us"]

    def relative(row: MethodRow) -> float:
        return latency(f"{row['name']}-{row['method']}") / latency("teacher")

    made = table_of(
        rows,
        ("student", lambda row: row["name"]),
        (
            "of the parameters",
            lambda row: f"{parameters[row['name']] / size_of(teacher):.1%}",
        ),
        (RETAINED, lambda row: share_cell(row["retention"], row["retention_95"])),
        ("another student, 95 %", lambda row: interval_cell(row["another_95"])),
        ("latency, of the teacher's", lambda row: f"{relative(row):.0%}"),
    )
    return (
        f"{made}\n\n{len(rows[0]['seeds'])} seeds of each, {teacher['evaluation']['games']} games. "
        "Latency was measured with the networks taking turns call by call, so that the teacher's "
        "weights fill the caches before each call of a small network: alone it is faster. "
        + compared_text(report)
    )


def int8(report: Report) -> str:
    """The int8 files, and what the chosen students lose by them."""
    rows = report["rows"]
    chosen = [row for row in rows if row["kind"] == "teacher" or row["chosen"]]
    plain = {row["name"]: row for row in chosen if row["kind"] in ("teacher", "student")}
    small = {row["name"]: row for row in rows if row["kind"] == "int8"}

    def export(name: str) -> ExportRecord:
        method = plain[name]["method"]
        return report["exports"][name if method is None else f"{name}-{method}"]

    def gap(name: str) -> str:
        by_file, by_torch = (each[name]["evaluation"]["returns"] for each in (small, plain))
        gaps = np.subtract(by_file, by_torch)
        low, high = mean_interval(gaps) or (np.nan, np.nan)
        return f"{gaps.mean():+.2f} [{low:+.2f}, {high:+.2f}]"

    made = table_of(
        list(small),
        ("agent", lambda name: name),
        (
            "times smaller",
            lambda name: f"{export(name)['bytes'] / export(name)['int8']['bytes']:.1f}",
        ),
        ("actions of the float32 file", lambda name: f"{export(name)['int8']['agreement']:.0%}"),
        ("score − float32's, 95 %", gap),
    )
    return (
        f"{made}\n\nThese files were calibrated on some of the held-out states, and their actions "
        "compared on the others."
    )


def method_table(report: Report) -> str:
    """All methods, and their differences from the main one."""
    compared = {(row["name"], row["method"]): row for row in report["comparisons"]}

    def gap(row: MethodRow) -> str:
        found = compared.get((row["name"], row["method"]))
        return NONE if found is None else f"{gap_cell(found)}, {verdict(found)}"

    return table_of(
        report["methods"],
        ("student", lambda row: f"`{row['name']}`"),
        ("method", lambda row: f"`{row['method']}`"),
        ("score", lambda row: f"{row['score']:.2f}"),
        (RETAINED, lambda row: share_cell(row["retention"], row["retention_95"])),
        ("agreement", lambda row: f"{row['agreement']:.1%}"),
        ("regret", lambda row: f"{row['regret']:.4f}"),
        (f"score − that of `{report['main']}`, 95 % together", gap),
    )


def compared_text(report: Report) -> str:
    """Which methods were found higher, lower, or neither."""
    said = {
        "higher": "Higher than `{}`: {}.",
        "lower": "Lower than `{}`: {}.",
        "no difference shown": "No difference from `{}` is shown for {}.",
    }
    parts = []
    for found, text in said.items():
        rows = [row for row in report["comparisons"] if verdict(row) == found]
        if rows:
            names = ", ".join(f"`{row['method']}` ({row['name']})" for row in rows)
            parts.append(text.format(report["main"], names))
    compared = {(row["name"], row["method"]) for row in report["comparisons"]}
    single = [
        f"`{row['method']}` ({row['name']})"
        for row in report["methods"]
        if row["method"] != report["main"] and (row["name"], row["method"]) not in compared
    ]
    if single:
        parts.append(f"{', '.join(single)}: not compared, a single seed was trained.")
    return " ".join(parts)


def method_text(report: Report, at_default: Report) -> str:
    """What the comparison shows, and what it does not."""
    updates, default = (settings_of(name)["updates"] for name in ("methods", "."))
    return (
        f"{compared_text(report)}\n\nThese verdicts hold for all {len(report['comparisons'])} "
        f"comparisons together, with fewer updates than the default (`--updates {updates}` instead "
        f"of {default:,}), which favours methods that learn faster. At the default number of "
        f"updates ([sizes](#sizes)): {compared_text(at_default)}\n\nEach additional loss has one "
        "weight, far from its paper's (Park et al. 2019 take 25 for distances and 50 for angles, "
        "Zagoruyko and Komodakis 2017 1,000 for attention); other weights were not tried. Label "
        "refinery was measured with labels by a teacher that never saw a shifted state; "
        "`--unshifted-labels` was not measured. A retention above 100 % does not show that a "
        "student is better than its teacher: among this many methods some are above it by chance."
    )


def values_text(report: Report) -> str:
    """Hinton's mix for students of values."""
    (row,) = report["methods"]
    tau = report["teacher"]["temperature"]
    return (
        "`hinton` for students of values retains "
        f"{share_cell(row['retention'], row['retention_95'])}: at T = τ = {tau:.3f} its soft term "
        f"has the factor T² = {tau**2:.4f}, so nearly all of the loss is its hard term, a "
        "regression of values. By these sizes, only a `--soft-weight` near 1 would balance them."
    )


def synthetic(reports: dict[str, Report]) -> str:
    """Students of states that were not played."""
    names = {
        "kegnet": "[KegNet](kegnet/report.md): none of the game's frames",
        "noise": "[uniform noise](noise/report.md): none",
        "mixed": "[mixed](mixed/report.md): states of play, blended or cut together",
    }
    rows = {name: reports[name]["methods"][0] for name in names}
    made = table_of(
        list(rows),
        ("states", lambda name: names[name]),
        ("score", lambda name: f"{rows[name]['score']:.2f}"),
        (RETAINED, lambda name: share_cell(rows[name]["retention"], rows[name]["retention_95"])),
        ("agreement on synthetic states", lambda name: f"{rows[name]['agreement']:.1%}"),
        ("median gap there", lambda name: f"{reports[name]['teacher']['gap']:.2f}"),
    )
    teacher = reports["kegnet"]["teacher"]
    constant, states = teacher["constant"], teacher["states"]
    samples, theirs = settings_of("kegnet").values()
    return (
        f"Students `net2` by `kl` on {states['train'] + states['held_out']:,} states:\n\n{made}\n\n"
        f"Playing action {constant['action']} at every step scores "
        f"{constant['evaluation']['mean']:.2f}. High agreement on synthetic states does not "
        "predict a student's score: these states do not occur in the game, and the teacher's gaps "
        "are wider on some of them than in play. KegNet's generators had "
        f"{samples:,} samples each, 1/{theirs / samples:.0f} of its authors': KegNet with as many "
        f"(`--kegnet-samples {theirs}`) was not measured."
    )


def cartpole(report: Report) -> str:
    """What the example on CartPole gave."""
    teacher, took = report["teacher"], settings_of("cartpole")
    rows = report["rows"]
    size = next(row["parameters"] or 0 for row in rows if row["name"] == "16-16-16/32")
    larger = next(row for row in report["methods"] if row["name"] == "16-16-16/32")
    least = [row for row in rows if (row["name"], row["kind"]) == ("1-1-1/1", "student")]
    int8 = next(row for row in rows if (row["name"], row["kind"]) == ("teacher", "int8"))
    shares = [f"{row['retention'] or 0:.0%}" for row in least]
    text = (
        f"The teacher balances for {teacher['evaluation']['mean']:.0f} of 500 steps and random "
        f"play for {teacher['random']['mean']:.0f}. Over three seeds and "
        f"{teacher['evaluation']['games']} games of each, 16-16-16/32, "
        f"{size / size_of(teacher):.0%} of the teacher's parameters, retains "
        f"{share_cell(larger['retention'], larger['retention_95'])}. The three seeds of "
        f"1-1-1/1, with a single unit in each layer, retain {', '.join(shares[:-1])} and "
        f"{shares[-1]}: a single seed shows nothing, and the "
        "[report](results/distillation/cartpole/report.md)'s table of methods has the mean over "
        "seeds. Look at the int8 files too: the teacher's "
        f"retains {share_cell(int8['retention'], int8['retention_95'])}. Training took "
        f"{took['train_seconds']} and distilling {took['distill_seconds']} seconds of processor "
        f"time on one core of an {took['processor']}."
    )
    return textwrap.fill(text, 104, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
