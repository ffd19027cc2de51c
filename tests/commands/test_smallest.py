"""The words of `distill.py --smallest` and `--min-retention`: what is tried, what is said."""

from pathlib import Path
from typing import Any

import pytest

from agents.distillation.records import StudentRecord, TeacherRecord
from ebu.commands import distill
from tests.agents.distillation.test_report import score_of, student_record, teacher_record
from tests.distillations import config_of

WEAK = "but the teacher's score, -1.97 to 7.97, is not above that of random play, 2.00"


@pytest.mark.parametrize(
    ("words", "students"),
    [
        ("--smallest", distill.LADDER),
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
    assert line.startswith(
        "smallest: not even the largest student is shown to retain 150%, but the"
    )
    # Of a strong one nothing is said.
    strong = teacher_record()
    (line,) = said(strong, [student_record("net1", 0, 52, 0.1)], capsys, *mean, 0.9)
    assert line == "the mean retention is below --min-retention 0.9: net1 (50.0%)"
