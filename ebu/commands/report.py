"""Tabulate and draw any run directories: scores, intervals, profiles, curves, published rows.

python report.py runs/study
python report.py runs/pong runs/other-study --out docs/results/here
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ebu.commands.reporting.aggregates import Statistics, statistics_of
from ebu.commands.reporting.comparison import Comparison, compare
from ebu.commands.reporting.pictures import Curve, draw_curves, draw_profiles
from ebu.commands.reporting.published import PUBLISHED_49, REFERENCE_AGENTS
from ebu.commands.reporting.runs import Run, find_run_directories, learning_curve, read_run
from ebu.commands.reporting.text import mixed_precisions, report_text
from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse, run_command
from ebu.run.directory import CONFIG
from ebu.run.hints import program_command


@dataclass(frozen=True)
class ReportConfig:
    """What is reported, and where."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories that hold some, such as that of a study."""
    out: Path | None = None
    """Where report.md, report.json and the pictures go [default: report/ in the first directory, or
    next to it if that is a run]."""


def main() -> None:
    """Read the command line, and run the command."""
    config = parse(
        ReportConfig,
        sys.argv[1:],
        prog="report.py",
        description="Tabulate and draw run directories.",
    )
    if not config.run_dirs:
        command = program_command("report.py", "runs/study")
        raise UsageError(f"name run directories, or that of a study: {command}")
    runs, curves, damaged = read_runs(find_run_directories(config.run_dirs))
    for line in damaged:
        print(f"warning: left out: {line}", file=sys.stderr)
    if not runs:
        raise EbuError(
            f"all {len(damaged)} run directories are damaged: there is nothing to report"
        )
    comparison = compare(runs)
    for group in comparison.groups:
        mixed = mixed_precisions(group)
        if mixed is not None:
            print(f"warning: {mixed}", file=sys.stderr)
    first = config.run_dirs[0]
    out = config.out or (first.parent if (first / CONFIG).exists() else first) / "report"
    groups = [statistics_of(group) for group in comparison.groups]
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = draw(comparison, groups, curves, out)
        text = report_text(comparison, groups, damaged, pictures)
        (out / "report.md").write_text(text, encoding="utf-8")
        record = json.dumps(as_json(comparison, groups, damaged), indent=1, allow_nan=False)
        (out / "report.json").write_text(record + "\n", encoding="utf-8")
    except OSError as error:
        raise EbuError(
            f"cannot write the report to {out}: {error.strerror or error}; choose another --out"
        ) from error
    print(text, end="")
    print(f"{out / 'report.md'}: {len(runs)} runs", file=sys.stderr)


def read_runs(run_dirs: Sequence[Path]) -> tuple[list[Run], dict[Path, Curve], list[str]]:
    """The runs that can be read, their learning curves, and a line for each that cannot."""
    runs, curves, damaged = [], {}, []
    for run_dir in run_dirs:
        try:
            curve = learning_curve(run_dir)
            runs.append(read_run(run_dir))
            curves[run_dir] = curve
        except EbuError as error:
            damaged.append(str(error))
    return runs, curves, damaged


def draw(
    comparison: Comparison,
    groups: Sequence[Statistics],
    curves: dict[Path, Curve],
    out: Path,
) -> dict[str, str]:
    """Draw everything; file names by training protocol (curves) and by name of group (profiles)."""
    pictures: dict[str, str] = {}
    for protocol, games in comparison.curves.items():
        drawn: dict[str, dict[str, list[Curve]]] = {}
        for game, methods in games.items():
            for name, runs in methods.items():
                found = [curves[run.directory] for run in runs]
                found = [curve for curve in found if len(curve[0])]
                if found:
                    drawn.setdefault(game, {})[name] = found
        if drawn:
            pictures[protocol] = f"curves-{protocol}.png"
            draw_curves(drawn).savefig(out / pictures[protocol])
    for of in groups:
        if of.profiles:
            name = of.group.name
            pictures[name] = f"profile-{name}.png"
            draw_profiles(of.thresholds, of.profiles).savefig(out / pictures[name])
    return pictures


def as_json(
    comparison: Comparison, groups: Sequence[Statistics], damaged: Sequence[str]
) -> dict[str, Any]:
    """Everything in the report, and every run's score, in JSON values."""
    return {
        "groups": [group_as_json(found) for found in groups],
        "unfinished": [run_as_json(run) for run in comparison.unfinished],
        "repeated": [str(run.directory) for run, _ in comparison.repeated],
        "damaged": list(damaged),
        "variants": comparison.variants,
        "published_49": [asdict(row) for row in PUBLISHED_49],
        "reference_agents": [asdict(agent) for agent in REFERENCE_AGENTS],
    }


def group_as_json(found: Statistics) -> dict[str, Any]:
    """A group: its runs, and its statistics."""
    group = found.group
    return {
        "protocol": group.protocol,
        "frames": group.frames,
        "games_each": group.games_each,
        "final": group.final,
        "precisions": group.precisions(),
        "missing": group.missing(),
        "runs": [run_as_json(run) for run in group.runs],
        "games": plain([asdict(row) for row in found.rows]),
        "aggregates": plain([asdict(aggregate) for aggregate in found.aggregates]),
        "profiles": {
            "human_table": found.profile_table,
            "games": found.profile_games,
            "thresholds": found.thresholds.tolist(),
            "methods": plain([asdict(profile) for profile in found.profiles]),
        },
    }


def run_as_json(run: Run) -> dict[str, Any]:
    """A run with its score."""
    return {
        "run_dir": str(run.directory),
        "game": run.game,
        "agent": run.agent,
        "seed": run.seed,
        "asked_frames": run.asked_frames,
        "played_frames": run.played_frames,
        "precision": run.precision,
        "return_last_100_games": run.last_games,
        "score": None if run.score is None else asdict(run.score),
        "settings": run.settings,
    }


def plain(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, dict):
        return {key: plain(element) for key, element in value.items()}
    if isinstance(value, list):
        return [plain(element) for element in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def command() -> None:
    """Run the command with the words of the command line, and exit."""
    run_command(main)


if __name__ == "__main__":
    command()
