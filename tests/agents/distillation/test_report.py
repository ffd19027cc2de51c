"""The report of a distillation from given records: its figures, text and picture."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.distillation.deploy.deployment import ExportRecord
from agents.distillation.records import (
    GameScores,
    StudentRecord,
    TeacherRecord,
    export_name,
    write_record,
)
from agents.distillation.report.picture import draw, front
from agents.distillation.report.retention import describe
from agents.distillation.report.rows import Report, Row, compose, read_records
from agents.distillation.report.text import report_text, verdict, write_report
from ebu.errors import EbuError, UsageError
from ebu.paired import paired_difference, share_interval
from ebu.statistics import mean_interval
from tests.figures import unreadable


def score_of(*returns: float, **changes: Any) -> GameScores:
    interval = mean_interval(np.array(returns))
    score: GameScores = {
        "mean": float(np.mean(returns)),
        "games": len(returns),
        "interval_95": None if interval is None else list(interval),
        "returns": list(returns),
        "human_normalised": None,
        "epsilon": 0.05,
        "protocol": "paper",
        "seed": 7,
        "frames_played": 4_000,
    }
    return {**score, **changes}  # type: ignore[typeddict-item]


def around(mean: float) -> list[float]:
    return [mean - 2, mean, mean + 2]


def teacher_record(**changes: Any) -> TeacherRecord:
    record: TeacherRecord = {
        "run_dir": "runs/breakout",
        "game": "breakout",
        "protocol": "paper",
        "network": "nature",
        "frames": 1_000_000,
        "num_actions": 4,
        "parameters": 1_686_180,
        "multiply_adds": 9_345_024,
        "evaluation": score_of(*around(102)),
        "random": score_of(1, 2, 3, epsilon=1.0),
        "constant": {"action": 3, "evaluation": score_of(5, 6, 7), "means": [0.0, 2.0, 1.0, 6.0]},
        "gap": 0.0512,
        "temperature": 0.0512,
        "temperature_setting": "auto",
        "entropy": 0.987,
        "states": {"train": 196_000, "held_out": 4_000, "rounds": 3, "source": "play"},
    }
    return {**record, **changes}  # type: ignore[typeddict-item]


def student_record(
    name: str, seed: int, mean: float, loss: float, method: str = "kl", **changes: Any
) -> StudentRecord:
    record: StudentRecord = {
        "student": name,
        "network": name,
        "method": method,
        "seed": seed,
        "outputs": "logits",
        "parameters": {"net1": 424_276, "net2": 111_540}.get(name, 61_000),
        "multiply_adds": {"net1": 3_155_968, "net2": 2_183_936}.get(name, 2_133_504),
        "updates": 10_000,
        "states": 196_000,
        "seconds": 300.0,
        "held_out": {"loss": loss, "agreement": 0.91, "regret": 0.0123, "states": 4_000},
        "evaluation": score_of(*around(mean)),
    }
    return {**record, **changes}  # type: ignore[typeddict-item]


def export_record(name: str, seed: int, p50_us: float, **changes: Any) -> ExportRecord:
    record: ExportRecord = {
        "seed": seed,
        "onnx": f"{name}.onnx",
        "bytes": 447_579,
        "opset": 20,
        "parity": {
            "states": 10_000,
            "largest_difference": 4e-6,
            "agreement": 0.9999,
            "tolerance": 1e-3,
        },
        "int8": {
            "onnx": f"{name}.int8.onnx",
            "bytes": 121_473,
            "calibrated_on": 512,
            "states": 3_488,
            "agreement": 0.97,
            "evaluation": score_of(*around(80)),
        },
        "latency": {
            "torch": {"p50_us": 4 * p50_us, "p99_us": 5 * p50_us},
            "onnxruntime": {"p50_us": p50_us, "p99_us": 2 * p50_us},
            "int8": {"p50_us": p50_us / 2, "p99_us": p50_us},
            "threads": 1,
            "batch": 1,
            "calls": 1_000,
            "hardware": "a processor, 2 cores, Linux x86_64",
        },
    }
    return {**record, **changes}  # type: ignore[typeddict-item]


STUDENTS = [
    student_record("net1", 0, 100, 0.031),
    student_record("net1", 1, 96, 0.030),
    student_record("net1", 2, 98, 0.033),
    student_record("net2", 0, 82, 0.050),
    student_record("net2", 1, 87, 0.052),
    student_record("net2", 2, 90, 0.051),
    student_record("net1", 0, 60, 0.4, "hard"),
    student_record("net2", 0, 50, 0.4, "hard"),
]
EXPORTS = {
    "teacher": export_record("teacher", 3, 250, bytes=6_746_042),
    "net1-kl": export_record("net1-kl", 1, 90),
    "net2-kl": export_record("net2-kl", 0, 65),
}


def recorded(
    out: Path,
    *,
    teacher: TeacherRecord | None = None,
    students: list[StudentRecord] = STUDENTS,
    exports: dict[str, ExportRecord] | None = EXPORTS,
    left_out: dict[str, str] | None = None,
    main: str = "kl",
) -> Report:
    """What the report of these records holds."""
    write_record(out / "teacher.json", teacher or teacher_record())
    for record in students:
        name = f"{export_name(record['student'], record['method'])}-seed{record['seed']}"
        write_record(out / "students" / name / "result.json", record)
    if exports is not None:
        records = {"exports": exports, "left_out": left_out or {}}
        write_record(out / "export" / "export.json", records)
        for file in (file for export in exports.values() for file in (export, export["int8"])):
            (out / "export" / file["onnx"]).write_bytes(bytes(file["bytes"]))
    return compose(read_records(out, main))


def row_of(
    report: Report, name: str, method: str | None = None, seed: int | None = None, kind: str = ""
) -> Row:
    (row,) = (
        row
        for row in report["rows"]
        if (row["name"], row["method"], row["seed"]) == (name, method, seed)
        and (row["kind"] == kind if kind else row["kind"] != "int8")
    )
    return row


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, its header first."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return [rows[0], *rows[2:]]


def draw_panels(report: Report) -> list[Any]:
    return draw(report["rows"]).axes


# --- figures --------------------------------------------------------------------------------


def test_figures_by_hand(tmp_path: Path) -> None:
    report = recorded(tmp_path)
    row = row_of(report, "net2", "kl", 0)
    assert row["retention"] == pytest.approx((82 - 2) / (102 - 2))
    assert row["raw_ratio"] == pytest.approx(82 / 102)
    assert (row["held_out_loss"], row["agreement"], row["regret"]) == (0.050, 0.91, 0.0123)
    assert (row["parameters"], row["multiply_adds"]) == (111_540, 2_183_936)
    assert (row["bytes"], row["p50_us"], row["p99_us"]) == (447_579, 65, 130)
    assert row_of(report, "random play")["retention"] == 0
    assert row_of(report, "always action 3")["retention"] == pytest.approx(0.04)
    assert row_of(report, "teacher")["retention"] == 1
    (of_net2,) = (m for m in report["methods"] if (m["name"], m["method"]) == ("net2", "kl"))
    assert of_net2["seeds"] == [0, 1, 2]
    assert of_net2["score"] == pytest.approx((82 + 87 + 90) / 3)
    assert of_net2["retention"] == pytest.approx((80 + 85 + 88) / 300)
    assert of_net2["held_out_loss"] == pytest.approx(0.051)


def test_intervals_are_paired_and_of_a_student_a_method_or_another_student(tmp_path: Path) -> None:
    report = recorded(tmp_path)
    known = np.array(around(102)), np.array([1.0, 2, 3])
    row = row_of(report, "net1", "kl", 2)
    assert row["retention_95"] == list(share_interval(np.array([around(98)]), *known) or ())
    (of_net1, single) = (m for m in report["methods"] if m["name"] == "net1")
    students = np.array([around(mean) for mean in (100, 96, 98)])
    assert of_net1["retention_95"] == list(share_interval(students, *known) or ())
    assert of_net1["another_95"] == list(share_interval(students, *known, another=True) or ())
    assert single["method"] == "hard"
    assert single["retention_95"] is single["another_95"] is None


def test_methods_are_compared_with_the_main_one_by_pairs_and_corrected(tmp_path: Path) -> None:
    students = [
        student_record("net1", seed, mean + 3 * seed, 0.1, method)
        for method, mean in (("kl", 80), ("hard", 40), ("noisy", 81))
        for seed in range(3)
    ]
    first, second = recorded(tmp_path, students=students)["comparisons"]
    assert [first["method"], second["method"]] == ["hard", "noisy"]
    returns = {
        method: np.array([s["evaluation"]["returns"] for s in students if s["method"] == method])
        for method in ("kl", "hard", "noisy")
    }
    # Two comparisons: intervals of 97.5 %, and the smaller p-value twice.
    for found, times in ((first, 2), (second, 1)):
        expected = paired_difference(returns[found["method"]], returns["kl"], confidence=0.975)
        assert expected is not None
        assert found["difference"] == pytest.approx(expected.mean)
        assert found["together_95"] == pytest.approx([expected.low, expected.high])
        assert found["p_value"] == pytest.approx(times * expected.p_value)
    assert [verdict(found) for found in (first, second)] == ["lower", "no difference shown"]


def test_other_games_are_not_compared(tmp_path: Path) -> None:
    other = score_of(*around(90), seed=8)
    students = [
        student_record("net1", 0, 80, 0.1),
        student_record("net1", 1, 80, 0.1),
        student_record("net1", 0, 0, 0.1, "hard", evaluation=other),
    ]
    report = recorded(tmp_path, students=students, exports=None)
    row = row_of(report, "net1", "hard", 0)
    assert (row["retention_95"], row["above_floor"], report["comparisons"]) == (None, None, [])
    assert any("hard, seed 0 was scored with another seed" in line for line in report["warnings"])


def test_int8_files_have_rows_of_their_own(tmp_path: Path) -> None:
    report = recorded(tmp_path)
    # Of net1 and net2 the seeds with the lowest held-out loss, whatever they scored.
    assert [m["chosen_seed"] for m in report["methods"]] == [1, 0, 0, 0]
    int8 = [row for row in report["rows"] if row["kind"] == "int8"]
    assert [(row["name"], row["seed"], row["chosen"]) for row in int8] == [
        ("teacher", None, False),
        ("net1", 1, True),
        ("net2", 0, True),
    ]
    row = int8[2]
    assert row["evaluation"]["mean"] == 80
    assert row["retention"] == pytest.approx(0.78)
    assert (row["bytes"], row["p50_us"]) == (121_473, 65 / 2)


@pytest.mark.parametrize(("mean", "above"), [(8.4, False), (8.6, True)])
def test_above_the_floor_is_above_random_and_the_best_constant_game_by_game(
    tmp_path: Path, mean: float, above: bool
) -> None:
    # The constant scores 5, 6, 7, and each difference is one apart: Student's t is 2.48 to a side.
    report = recorded(tmp_path, students=[student_record("net1", 0, mean, 0.1)], exports=None)
    assert row_of(report, "net1", "kl", 0)["above_floor"] is above
    assert row_of(report, "always action 3")["above_floor"] is None


@pytest.mark.parametrize(
    ("main", "methods", "baselines"),
    [
        ("kl", ["kl", "hard", "from-scratch"], ["hard", "from-scratch"]),
        ("hard", ["kl", "hard"], ["kl"]),
        ("hard", ["hard", "from-scratch"], ["from-scratch"]),
        ("hard+hint0.1", ["hard+hint0.1", "hard"], ["hard"]),
        ("kl", ["kl", "kl-gen2", "kl+hint0.1"], ["kl+hint0.1"]),
        ("kl+mutual1", ["kl+mutual1", "kl+mutual1-peer", "kl"], ["kl"]),
        (
            "kl+mutual1-refined",
            ["kl+mutual1-refined", "kl+mutual1-refined-peer", "kl+mutual1"],
            ["kl+mutual1"],
        ),
        ("kl-refined", ["kl-refined", "kl-refined-gen2", "kl"], ["kl"]),
        ("kl", ["kl-joint", "hard-joint"], ["hard-joint"]),
    ],
)
def test_what_is_a_baseline(
    tmp_path: Path, main: str, methods: list[str], baselines: list[str]
) -> None:
    students = [student_record("net1", 0, 50, 0.1, method) for method in methods]
    report = recorded(tmp_path, students=students, exports=None, main=main)
    kinds = {row["method"]: row["kind"] for row in report["rows"] if row["method"]}
    assert kinds == {m: "baseline" if m in baselines else "student" for m in methods}
    # Baselines come last, and none of them is chosen.
    found = [row["kind"] for row in report["rows"] if row["method"]]
    assert found == sorted(found, reverse=True)
    chosen_rows = [line for line in report_text(report).splitlines() if "chosen |" in line]
    assert not any(f" {m} | 0 " in line for line in chosen_rows[1:] for m in baselines)


# --- words ----------------------------------------------------------------------------------


def test_sizes_latencies_and_files_are_compared_with_the_teachers(tmp_path: Path) -> None:
    report = recorded(tmp_path)
    text = report_text(report)
    assert table(text, "Sizes")[2] == ["net1", "424,276", "25.2%", "3,155,968", "33.8%"]
    latencies = table(text, "CPU inference latency")
    assert latencies[2] == ["net1-kl", "360 / 450", "90 / 180", "45 / 90", "36.0%", "18.0%"]
    assert table(text, "ONNX files")[2] == [
        "net1-kl.onnx", "447,579", "121,473", "3.68", "10,000", "4.0e-06 (≤ 0.001)", "99.99%",
        "97.0% of 3,488", "512",
    ]  # fmt: skip


@pytest.mark.parametrize("unknown", [None, 0])
def test_what_a_teacher_does_not_tell_is_left_out(tmp_path: Path, unknown: int | None) -> None:
    names = ("frames", "parameters", "multiply_adds")
    report = recorded(tmp_path, teacher=teacher_record(**dict.fromkeys(names, unknown)))
    text = report_text(report)
    assert "from `runs/breakout`; 4 actions." in text
    assert table(text, "Sizes")[1:3] == [
        ["teacher", "–", "–", "–", "–"],
        ["net1", "424,276", "–", "3,155,968", "–"],
    ]
    row = row_of(report, "teacher")
    assert (row["parameters"], row["multiply_adds"]) == (None, None)
    # The front starts at a student, and the teacher is drawn over its latency alone.
    stars = [[line for line in p.lines if line.get_marker() == "*"] for p in draw_panels(report)]
    assert [len(found) for found in stars] == [0, 0, 1]
    lines = [p.lines[-1].get_xdata() for p in draw_panels(report)[:2]]
    assert [len(np.asarray(xs)) > 0 and min(np.asarray(xs)) > 0 for xs in lines] == [True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": score_of(1, 2, 6)}, "minus that of random play"),
        ({"evaluation": score_of(6, 8, 10)}, "minus that of always action 3"),
        ({"evaluation": score_of(100)}, "a single game"),
    ],
)
def test_a_teacher_that_is_not_above_the_floor_is_warned_of_in_the_head(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    report = recorded(tmp_path, teacher=teacher_record(**changes))
    assert any(said in line for line in report["warnings"])
    text = report_text(report)
    assert f"**Warning:** {report['warnings'][0]}" in text.partition("## ")[0]
    # It is said again where the figures are.
    assert text.count("**Weak teacher:** ") == 2
    assert said in describe(STUDENTS[0], report["teacher"])


def test_a_teacher_that_has_gained_nothing_gives_no_shares(tmp_path: Path) -> None:
    report = recorded(tmp_path, teacher=teacher_record(evaluation=score_of(-2, -1, 0)))
    assert {row["raw_ratio"] for row in report["rows"]} == {None}
    assert {row["retention"] for row in report["rows"]} == {None}
    assert {row["retention"] for row in report["methods"]} == {None}
    rows = table(report_text(report), "Scores")
    assert {row[4] for row in rows[1:]} == {"–"}


def test_students_chosen_on_synthetic_states_are_warned_of(tmp_path: Path) -> None:
    counts: Any = {"train": 980, "held_out": 20, "rounds": 1, "source": "kegnet"}
    report = recorded(tmp_path, teacher=teacher_record(states=counts))
    synthetic, experimental = report["warnings"]
    assert "synthetic (kegnet), the held-out ones too: seeds are chosen on them" in synthetic
    assert experimental.startswith("Experimental: states from KegNet's generators")
    assert "States, from kegnet: 980 to train on, 20" in report_text(report)


def test_an_ensemble_is_described_and_has_no_file(tmp_path: Path) -> None:
    members = [
        {"member": f"runs/{seed}", "frames": 500_000, "temperature": 0.05, "gap": 0.07}
        for seed in range(3)
    ]
    write_record(tmp_path / "ensemble.json", {"members": members})
    exports = {"net1-kl": export_record("net1-kl", 1, 90)}
    why = "only single networks over images, such as Atari's, are exported"
    report = recorded(
        tmp_path,
        teacher=teacher_record(network="ensemble of 3 nature"),
        students=STUDENTS[:3],
        exports=exports,
        left_out={"teacher": why},
    )
    assert report["members"] == members
    text = report_text(report)
    assert text.startswith("# breakout: students of ensemble of 3 nature\n")
    assert "| `runs/2` | 500,000 | 0.05 | 0.07 |" in text
    assert f"- teacher has no file: {why}\n" in text


def test_scores_of_another_setting_are_warned_of(tmp_path: Path) -> None:
    other = score_of(*around(90), epsilon=0.01, seed=8)
    student = student_record("net1", 0, 0, 0.1, evaluation=other)
    (warning,) = recorded(tmp_path, students=[student], exports=None)["warnings"]
    assert warning.startswith("net1, kl, seed 0 was scored with another epsilon and seed")


def test_a_method_of_a_single_seed_is_not_compared(tmp_path: Path) -> None:
    students = [
        student_record("net1", seed, mean, 0.1, method)
        for method, mean, seeds in (("kl", 80, 2), ("hard", 40, 1), ("noisy", 70, 2))
        for seed in range(seeds)
    ]
    report = recorded(tmp_path, students=students)
    assert [found["method"] for found in report["comparisons"]] == ["noisy"]
    (line,) = (line for line in report["missing"] if "is not compared" in line)
    assert line.startswith("net1, hard ")


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    (tmp_path / "students" / "net3-kl-seed0").mkdir(parents=True)
    exports = {"net1-kl": export_record("net1-kl", 0, 90)}
    why = "only single networks over images, such as Atari's, are exported"
    report = recorded(tmp_path, students=STUDENTS[:6], exports=exports, left_out={"teacher": why})
    assert report["missing"] == [
        "net3-kl-seed0 is not finished",
        "no student was trained on hard labels",
        "no student was trained from scratch",
        f"teacher has no file: {why}",
        "net1, kl: the files are of seed 0, and seed 1 is the chosen one now",
        "net2 was not exported",
    ]
    text = report_text(report)
    for line in report["missing"]:
        assert f"- {line}\n" in text
    # Without the teacher's file there is nothing to give shares of.
    assert table(text, "CPU inference latency")[0] == [
        "agent", "torch p50 / p99, µs", "onnxruntime", "int8",
    ]  # fmt: skip
    assert not any(row["name"] == "teacher" and row["kind"] == "int8" for row in report["rows"])


def test_files_that_are_lost_or_altered_since_are_warned_of(tmp_path: Path) -> None:
    assert recorded(tmp_path)["warnings"] == []
    (tmp_path / "export" / "net1-kl.onnx").unlink()
    (tmp_path / "export" / "teacher.int8.onnx").write_bytes(b"another")
    again = "run the same command again, without --no-export"
    found = compose(read_records(tmp_path, "kl"))["warnings"]
    assert [line.partition(f": {again}")[0] for line in found] == [
        "export/teacher.int8.onnx is not the file that was measured",
        "export/net1-kl.onnx is lost",
    ]
    # Of the same size, by its digest.
    digested = export_record("net1-kl", 1, 90, sha256=sha256(bytes(447_579)).hexdigest())
    assert recorded(tmp_path, exports={"net1-kl": digested})["warnings"] == []
    (tmp_path / "export" / "net1-kl.onnx").write_bytes(bytes(447_578) + b"1")
    (line,) = compose(read_records(tmp_path, "kl"))["warnings"]
    assert line.startswith("export/net1-kl.onnx is not the file that was measured: ")


def test_files_of_other_weights_than_were_scored_are_not_reported(tmp_path: Path) -> None:
    digested = export_record("net1-kl", 1, 90, weights="a")
    students = [student_record("net1", 1, 96, 0.03, weights="a")]
    report = recorded(tmp_path, students=students, exports={"net1-kl": digested})
    assert report["warnings"] == []
    students = [student_record("net1", 1, 96, 0.03, weights="b")]
    report = recorded(tmp_path, students=students, exports={"net1-kl": digested})
    (line,) = report["warnings"]
    assert line.startswith("export/net1-kl.onnx is of other weights than were scored: run the same")
    assert report["exports"] == {}
    assert all(row["kind"] != "int8" and row["bytes"] is None for row in report["rows"])


# --- files ----------------------------------------------------------------------------------


def test_the_json_is_the_report_and_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    names = ("report.md", "report.json", "pareto.png")
    recorded(tmp_path)
    report = write_report(tmp_path, "kl")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    before = [(tmp_path / name).read_bytes() for name in names]
    assert write_report(tmp_path, "kl") == report
    assert [(tmp_path / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("names", "methods", "exports"),
    [
        (["net2"], ["kl"], None),
        (["net1", "net2", "net3"], [f"kl+hint_dense0.{n}" for n in range(10, 26)], EXPORTS),
        (["128-256-256/1024", "2-2-2/4"], ["kl", "hard", "from-scratch"], EXPORTS),
    ],
    ids=["one", "many methods", "long names"],
)
def test_nothing_of_the_picture_is_cut(
    tmp_path: Path, names: list[str], methods: list[str], exports: dict[str, ExportRecord] | None
) -> None:
    students = [
        student_record(name, 0, 80 + 5 * number, 0.05, method)
        for number, name in enumerate(names)
        for method in methods
    ]
    report = recorded(tmp_path, students=students, exports=exports)
    assert unreadable(draw(report["rows"])) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-3, 3)), min_size=1))
def test_the_front_is_what_nothing_as_cheap_is_as_good_as(points: list[tuple[int, int]]) -> None:
    found = front(points)
    expected = {
        (cost, retained)
        for cost, retained in points
        if not any(c <= cost and k >= retained and (c, k) != (cost, retained) for c, k in points)
    }
    assert found == sorted(expected)


def test_a_damaged_record_is_named_and_the_last_report_stays(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no teacher\.json"):
        write_report(tmp_path, "kl")
    recorded(tmp_path)
    write_report(tmp_path, "kl")
    before = (tmp_path / "report.md").read_bytes()
    name = "students/net1-kl-seed0/result.json"
    (tmp_path / name).write_text("{")
    with pytest.raises(EbuError, match=name) as failure:
        write_report(tmp_path, "kl")
    assert "\n" not in str(failure.value)
    assert (tmp_path / "report.md").read_bytes() == before
