"""Tabulate and draw any run directories: scores, intervals, profiles, curves, published rows.

python report.py runs/study
python report.py runs/pong runs/other-study --out docs/results/here
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse, run_command
from ebu.run.directory import CONFIG
from ebu.run.files import is_there, write_whole
from ebu.run.hints import program_command
from ebu.run.reading import read_file, read_json

TEXT, RECORD = "report.md", "report.json"


@dataclass(frozen=True)
class ReportConfig:
    """What is reported, and where."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories that hold some, such as that of a study."""
    out: Path | None = None
    """Where report.md, report.json and the pictures go [default: report/ in the first directory, or
    next to it if that is a run]."""


def main() -> None:
    """Read the runs, write the report and print its text."""
    config = parse(
        ReportConfig,
        sys.argv[1:],
        prog="report.py",
        description="Tabulate and draw run directories.",
    )
    if not config.run_dirs:
        command = program_command("report.py", "runs/study")
        raise UsageError(f"name run directories, or that of a study: {command}")
    first = config.run_dirs[0]
    out = config.out
    if out is None:
        # `..` of a run's name, which may be `.`.
        out = Path(os.path.normpath(first / ".." if (first / CONFIG).exists() else first), "report")
    write_report(config.run_dirs, out)


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Report the runs in these directories.

    Raises `EbuError` if there is nothing to report, `UsageError` for an `out` with other files of a
    report's names.
    """
    check_out(out)
    from ebu.commands.reporting.runs import find_run_directories, read_runs

    runs, curves, damaged = read_runs(find_run_directories(run_dirs))
    for line in damaged:
        print(f"warning: left out: {line}", file=sys.stderr)
    if not runs:
        raise EbuError(
            f"all {len(damaged)} run directories are damaged: there is nothing to report"
        )

    # Computes and draws: imported once there is something to compute.
    from ebu.commands.reporting.aggregates import statistics_of
    from ebu.commands.reporting.comparison import compare
    from ebu.commands.reporting.milestones import milestones
    from ebu.commands.reporting.pictures import write_pictures
    from ebu.commands.reporting.record import report_record
    from ebu.commands.reporting.text import mixed_precisions, report_text

    comparison = compare(runs)
    for group in comparison.groups:
        mixed = mixed_precisions(group)
        if mixed is not None:
            print(f"warning: {mixed}", file=sys.stderr)
    groups = [statistics_of(group) for group in comparison.groups]
    pictures = write_pictures(comparison, groups, curves, out)
    reached = {
        found.group.name: milestones(found.group, curves, found.profile_table) for found in groups
    }
    text = report_text(comparison, groups, reached, damaged, pictures)
    write_whole(out / TEXT, text.encode(errors="backslashreplace"))
    write_whole(out / RECORD, report_record(comparison, groups, reached, damaged))
    print(text, end="")
    print(f"{out / TEXT}: {len(runs)} runs", file=sys.stderr)


def check_out(out: Path) -> None:
    """Raise `UsageError` where the directory, or a report.md or report.json in it, is none."""
    if is_there(out) and not out.is_dir():
        raise UsageError(f"--out {out} is no directory: choose another place")
    for path, is_report in ((out / TEXT, _is_text), (out / RECORD, _is_record)):
        try:
            if is_report(path):
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            pass
        raise UsageError(f"{path} is no report of report.py: move it away, or choose another --out")


def _is_text(path: Path) -> bool:
    return read_file(path).startswith(b"# Report\n")


def _is_record(path: Path) -> bool:
    record = read_json(path)
    return isinstance(record, dict) and record.keys() >= {"groups", "unfinished", "damaged"}


command = partial(run_command, main)

if __name__ == "__main__":
    command()
