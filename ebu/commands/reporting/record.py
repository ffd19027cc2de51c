"""The report as data: report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ebu.commands.reporting.aggregates import Statistics
from ebu.commands.reporting.comparison import Comparison
from ebu.commands.reporting.milestones import Milestones
from ebu.commands.reporting.published import (
    AGENTS_100K,
    PUBLISHED_26,
    PUBLISHED_49,
    REFERENCE_AGENTS,
)
from ebu.commands.reporting.runs import Run
from ebu.run.files import as_json


def report_record(
    comparison: Comparison,
    groups: Sequence[Statistics],
    reached: Mapping[str, Sequence[Milestones]],
    damaged: Sequence[str],
) -> bytes:
    """Everything in the report, and every run's score, as a JSON file holds it."""
    record = {
        "groups": [
            {
                **_group_record(found),
                "milestones": [asdict(one) for one in reached[found.group.name]],
            }
            for found in groups
        ],
        "unfinished": [_run_record(run) for run in comparison.unfinished],
        "repeated": [str(run.directory) for run, _ in comparison.repeated],
        "damaged": list(damaged),
        "variants": comparison.variants,
        "published_49": [asdict(row) for row in PUBLISHED_49],
        "published_26": [asdict(row) for row in PUBLISHED_26],
        "reference_agents": [asdict(agent) for agent in (*REFERENCE_AGENTS, *AGENTS_100K)],
    }
    return as_json(record, default=np.ndarray.tolist)


def _group_record(found: Statistics) -> dict[str, Any]:
    group = found.group
    return {
        "protocol": group.protocol,
        "frames": group.frames,
        "games_each": group.games_each,
        "final": group.final,
        "precisions": group.precisions(),
        "missing": group.missing(),
        "runs": [_run_record(run) for run in group.runs],
        "games": [asdict(row) for row in found.rows],
        "aggregates": [asdict(aggregate) for aggregate in found.aggregates],
        "improvements": [asdict(each) for each in found.improvements],
        "profiles": {
            "human_table": found.profile_table,
            "games": found.profile_games,
            "thresholds": found.thresholds,
            "methods": [asdict(profile) for profile in found.profiles],
        },
    }


def _run_record(run: Run) -> dict[str, Any]:
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
