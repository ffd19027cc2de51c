"""Distil a trained agent into small networks, and measure how well they play.

python distill.py runs/pong-ebu-default-seed0 --students net1 net2 net3 --out runs/pong-students
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from agents.architectures import LADDER
from agents.distillation.records import REPORT, StudentRecord, TeacherRecord, retention
from agents.distillation.report.retention import describe, retention_interval, weakness
from agents.distillation.settings import DistillConfig, Stopped
from ebu.errors import EbuError
from ebu.run.cli import parse, run_command
from ebu.run.progress import say
from ebu.run.signals import stop_on_signals
from envs import EnvironmentFault

SMALLEST_RETENTION = 0.95


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = read_config(sys.argv[1:])
    config.plan()
    # Imported when the settings are known to be right: it loads torch.
    from ebu.commands.distilling.run import run

    stopped_by: list[int] = []
    try:
        with stop_on_signals(stopped_by.append):
            outcomes = run(config, should_stop=lambda: bool(stopped_by))
    except Stopped:
        say("stopped: run the same command again to resume")
        return 128 + stopped_by[0]
    except EnvironmentFault as fault:
        raise EbuError(f"{fault}; run the same command again to resume") from fault
    return max([verdict(*outcome) for outcome in outcomes])


def read_config(words: Sequence[str]) -> DistillConfig:
    """The settings of a command line; without --students, --smallest has its own."""
    config = parse(
        DistillConfig,
        words,
        prog="distill.py",
        description="Distil a trained agent into small networks, and measure how well they play.",
    )
    named = any(word.partition("=")[0] == "--students" for word in words)
    return replace(config, students=LADDER) if config.smallest and not named else config


def verdict(config: DistillConfig, teacher: TeacherRecord, students: list[StudentRecord]) -> int:
    """Print the chosen students; the exit code, 1 if one does not retain what was asked."""
    failed = []
    best = config.best_of(students)
    weak = f", but {why}" if (why := weakness(teacher)) else ""
    for student in best:
        print(f"chosen: {describe(student, teacher)}")
        retained = tested_retention(config, teacher, student)
        if config.min_retention is not None and not retained >= config.min_retention:
            found = "no figure" if math.isnan(retained) else f"{retained:.1%}"
            failed.append(f"{student['student']} ({found})")
    say(f"report: {config.out / REPORT}")
    if config.smallest:
        return announce_smallest(config, teacher, best, weak)
    if failed:
        tested = "lower bound of the" if config.retention_test == "bound" else "mean"
        say(
            f"the {tested} retention is below --min-retention {config.min_retention:g}: "
            f"{', '.join(failed)}{weak}"
        )
    return 1 if failed else 0


def tested_retention(
    config: DistillConfig, teacher: TeacherRecord, student: StudentRecord
) -> float:
    """What --min-retention is compared with; NaN where there is no figure."""
    score = student["evaluation"]
    retained = retention(score, teacher)
    if config.retention_test == "bound":
        interval = retention_interval([score], teacher)
        retained = None if interval is None else interval[0]
    return math.nan if retained is None else retained


def announce_smallest(
    config: DistillConfig, teacher: TeacherRecord, best: Sequence[StudentRecord], weak: str = ""
) -> int:
    """Print the smallest student that retains enough by the test; the exit code, 1 without one.

    `weak` is said of a teacher whose retention means little.

    Tested from the largest down to the first that fails: so all that is said of the lower end of an
    interval holds together with the confidence of one test, however many students there are.
    """
    share = SMALLEST_RETENTION if config.min_retention is None else config.min_retention
    how = {"bound": "at the lower end of its 95 % interval", "mean": "in the mean"}
    tested = how[config.retention_test]
    found = None
    for student in sorted(best, key=lambda each: each["parameters"], reverse=True):
        if not tested_retention(config, teacher, student) >= share:
            break
        found = student
    if found is None:
        say(
            f"smallest: not even the largest student retains {share:.0%} {tested}{weak}; try more "
            "games"
        )
        return 1
    whole = teacher["parameters"]
    of_teacher = f"{found['parameters'] / whole:.1%} of the teacher's, " if whole else ""
    print(
        f"smallest: {found['student']}, {found['parameters']:,} parameters, {of_teacher}"
        f"retains {share:.0%} {tested}{weak}"
    )
    return 0


command = partial(run_command, main)

if __name__ == "__main__":
    command()
