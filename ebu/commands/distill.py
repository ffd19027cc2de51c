"""Distil a trained agent into small networks, and measure how well they play.

python distill.py runs/pong-ebu-default-seed0 --students net1 net2 net3 --out runs/pong-students
"""

import sys

from agents.distillation.records import REPORT, StudentRecord, TeacherRecord, retention
from agents.distillation.report.retention import describe, retention_interval
from agents.distillation.settings import DistillConfig, Stopped
from ebu.errors import EbuError
from ebu.run.cli import parse, run_command
from ebu.run.progress import say
from ebu.run.signals import stop_on_signals
from envs import EnvironmentFault


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = parse(
        DistillConfig,
        sys.argv[1:],
        prog="distill.py",
        description="Distil a trained agent into small networks, and measure how well they play.",
    )
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


def verdict(config: DistillConfig, teacher: TeacherRecord, students: list[StudentRecord]) -> int:
    """Print the chosen students; the exit code, 1 if one is not shown to retain what was asked."""
    failed = []
    for student in config.best_of(students):
        print(f"chosen: {describe(student, teacher)}")
        score = student["evaluation"]
        retained = retention(score, teacher)
        if config.retention_test == "bound":
            interval = retention_interval([score], teacher)
            retained = None if interval is None else interval[0]
        if config.min_retention is not None and (
            retained is None or retained < config.min_retention
        ):
            found = "no figure" if retained is None else f"{retained:.1%}"
            failed.append(f"{student['student']} ({found})")
    say(f"report: {config.out / REPORT}")
    if failed:
        tested = "lower bound of the" if config.retention_test == "bound" else "mean"
        say(
            f"the {tested} retention is below --min-retention {config.min_retention:g}: "
            f"{', '.join(failed)}"
        )
    return 1 if failed else 0


def command() -> None:
    """Run the command with the words of the command line, and exit."""
    run_command(main)


if __name__ == "__main__":
    command()
