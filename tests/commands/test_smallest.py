"""The words of `distill.py --smallest` and `--min-retention`: what is tried, what is said."""

from pathlib import Path
from typing import Any

import pytest

from agents.architectures import LADDER
from agents.distillation.records import StudentRecord, TeacherRecord
from ebu.commands import distill
from ebu.commands.distilling.build import check_teachers, leave_out_large
from ebu.errors import UsageError
from tests.agents.distillation.test_report import score_of, student_record, teacher_record
from tests.distillations import config_of, train
from tests.made_up import CPU

# 1, 3 and 5 against random play's 1, 2 and 3: 1 +- 4.303 / sqrt(3).
WEAK = (
    "but the teacher's score minus that of random play, -1.48 to 3.48 in the same games, is not "
    "above 0"
)


@pytest.mark.parametrize(
    ("words", "students"),
    [
        ("--smallest", LADDER),
        ("--smallest --students net1 net2 net3", ("net1", "net2", "net3")),
        ("--students net2 --smallest", ("net2",)),
        ("", ("net1", "net2", "net3")),
    ],
)
def test_students_that_are_named_are_those_that_are_tried(
    words: str, students: tuple[str, ...]
) -> None:
    assert distill.read_config(["run", "--out", "out", *words.split()]).students == students


def said(
    teacher: TeacherRecord, students: list[StudentRecord], capsys: Any, *flags: object
) -> list[str]:
    """The lines on students, without those that describe each."""
    names = dict.fromkeys(student["student"] for student in students)
    config = config_of(Path("run"), Path("out"), *flags, "--students", *names)
    distill.verdict(config, teacher, students)
    lines = "".join(capsys.readouterr()).splitlines()
    return [line for line in lines if not line.startswith(("chosen: ", "report: "))]


def test_every_printed_retention_warns_of_a_weak_teacher(capsys: Any) -> None:
    weak = teacher_record(evaluation=score_of(1, 3, 5))
    students = [student_record("net1", 0, 0, 0.1, evaluation=score_of(1, 3, 5))]
    mean = ("--retention-test", "mean", "--min-retention")
    (line,) = said(weak, students, capsys, "--smallest", *mean, 0.9)
    assert line.startswith(
        "smallest: net1, 424,276 parameters, 25.2% of the teacher's, retains 90%"
    )
    assert line.endswith(WEAK)
    (line,) = said(weak, students, capsys, *mean, 1.5)
    assert line == f"the mean retention is below --min-retention 1.5: net1 (100.0%), {WEAK}"
    (line,) = said(weak, students, capsys, "--smallest", *mean, 1.5)
    assert line.startswith("smallest: not even the largest student retains 150% in the mean, but")
    # Of a strong one nothing is said.
    strong = teacher_record()
    (line,) = said(strong, [student_record("net1", 0, 52, 0.1)], capsys, *mean, 0.9)
    assert line == "the mean retention is below --min-retention 0.9: net1 (50.0%)"


def test_what_is_said_names_the_test(capsys: Any) -> None:
    student = student_record("net1", 0, 104, 0.1)
    for share, test in ((0.9, "bound"), (0.9, "mean"), (1.5, "bound"), (1.5, "mean")):
        flags = ("--smallest", "--min-retention", share, "--retention-test", test)
        (line,) = said(teacher_record(), [student], capsys, *flags)
        assert ("interval" in line) == (test == "bound")
        assert ("mean" in line) == (test == "mean")


def test_sizes_that_are_not_below_the_teachers_are_left_out(tmp_path: Path, capsys: Any) -> None:
    def tried(*words: str) -> tuple[str, ...]:
        config = distill.read_config([str(run), "--out", "out", "--smallest", *words])
        games = check_teachers(config, config.plan(), CPU)
        return leave_out_large(config, games).students

    run = train(tmp_path / "run", "--game CartPole-v1 --network 9-9-9/40 --frames 60")
    assert tried() == ("8-8-8/32", "4-4-4/16", "2-2-2/8")
    assert "net1, net2, net3, 12-12-12/48 left out" in capsys.readouterr().err
    # What is named is tried, whatever its size.
    assert tried("--students", *LADDER) == LADDER
    run = train(tmp_path / "small", "--game CartPole-v1 --network 2-2-2/8 --frames 60")
    with pytest.raises(UsageError, match="name smaller networks with --students"):
        tried()
