"""Play one cell of a table of committed results with another seed, and compare.

    python -m studies.reproduce --results docs/results/variants --cell breakout-ebu-base

A cell is what differs by its seeds alone: one game, played by one method for so many frames. Its
scores give an interval in which 95 % of runs with other seeds lie; the run that is played here
tells whether it does.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebu.commands.reporting.runs import Run, find_run_directories, read_run, settings_digest
from ebu.commands.train_arguments import flags_of_run
from ebu.commands.trust import check_trust, trust_words
from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse, run_command
from ebu.run.hints import program_argv
from ebu.run.progress import say
from ebu.run.settings import NotNegative
from ebu.statistics import prediction_interval

FEWEST_SEEDS = 5
"""Seeds of a cell that is chosen; with fewer the interval holds almost any score."""


@dataclass(frozen=True)
class Settings:
    """What is played."""

    results: Path
    """Directory of committed results, as study.py --results writes them."""
    cell: str | None = None
    """Results without their -seedN, for instance pong-ebu [default: those with most seeds]."""
    seed: NotNegative | None = None
    """Seed to play with [default: the lowest that was not played]."""
    out: Path = Path("runs/reproduced")
    """Directory of the run; the same command resumes it."""
    trust_env: bool = False
    """Import modules of environments and wrappers that the results name: it runs their code."""


def cells_in(results: Path) -> dict[str, list[Run]]:
    """The runs of each cell that evaluate.py has scored, by its name.

    Raises `UsageError` where a name holds runs of several methods or scores of several kinds,
    `EbuError` for damaged results.
    """
    cells: dict[str, list[Run]] = {}
    for run in map(read_run, find_run_directories([results])):
        if run.final_score is not None and run.final_score.final:
            name = run.directory.name.removesuffix(f"-seed{run.seed}")
            cells.setdefault(name, []).append(run)
    for name, runs in cells.items():
        methods = {(run.game, run.asked_frames, settings_digest(run.settings)) for run in runs}
        if len(methods) > 1:
            raise UsageError(f"{results}: {name} has runs of several methods")
        scores = [run.final_score for run in runs if run.final_score is not None]
        scored = sorted({f"{score.games} games under {score.protocol}" for score in scores})
        if len(scored) > 1:
            raise UsageError(
                f"{results}: {name} is scored in {' and in '.join(scored)}: score all of it alike"
            )
    return cells


def chosen(settings: Settings) -> tuple[str, list[Run]]:
    """The cell to play. Raises `UsageError` where it is not there or has too few seeds."""
    cells = cells_in(settings.results)
    name, fewest = settings.cell, 2
    if name is None:
        name = max(cells, key=lambda each: len(cells[each]), default="")
        fewest = FEWEST_SEEDS
    runs = cells.get(name, [])
    if len(runs) < fewest:
        known = ", ".join(f"{each} ({len(cells[each])})" for each in sorted(cells)) or "none"
        raise UsageError(
            f"{settings.results}: {settings.cell or 'some cell'} needs {fewest} seeds; cells and "
            f"their seeds: {known}"
        )
    return name, runs


def play_run(name: str, run: Run, seed: int, out: Path) -> float:
    """The score of the run's settings with another seed. Raises `EbuError` if a command fails."""
    run_dir, scored = out / f"{name}-seed{seed}", run.final_score
    assert scored is not None  # its cell holds no others
    # This machine might choose another precision than the one that chose it for the results.
    own = (f"--precision={run.precision}", f"--seed={seed}", f"--run-dir={run_dir}")
    flags = [*flags_of_run(run.directory, earlier=True), *own]
    score = ["--episodes", scored.games, "--protocol", scored.protocol, "--device", "auto"]
    trust = trust_words(run.settings)
    for program, words in (("train.py", flags), ("evaluate.py", [run_dir, *score, *trust])):
        code = subprocess.run(program_argv(program, *words)).returncode
        if code:
            raise EbuError(f"{program} failed with exit code {code}: see above")
    final = read_run(run_dir, scored.games).final_score
    assert final is not None  # it was evaluated
    return final.mean


def verdict(scores: Sequence[float], score: float) -> str:
    """What the scores of a cell's seeds say of another one's."""
    interval = prediction_interval(np.array(scores))
    assert interval is not None
    low, high = interval
    inside = "inside" if low <= score <= high else "OUTSIDE"
    return (
        f"{score:.1f} lies {inside} of [{low:.1f}, {high:.1f}], where 95 % of new seeds lie by "
        f"{len(scores)} seeds with a mean of {np.mean(scores):.1f}"
    )


def main() -> None:
    """Choose a cell, play it, and print where its score lies."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="python -m studies.reproduce",
        description="Play one cell of committed results with another seed, and compare.",
    )
    name, runs = chosen(settings)
    seeds = {run.seed for run in runs}
    seed = settings.seed
    if seed is None:
        seed = min(set(range(len(seeds) + 1)) - seeds)
    elif seed in seeds:
        raise UsageError(f"--seed {seed} is one of those of {name}: choose another")
    # Its settings become flags, which train.py takes for typed ones.
    check_trust(runs[0].directory, runs[0].settings, settings.trust_env)
    say(f"{name}: playing seed {seed}; results have {', '.join(map(str, sorted(seeds)))}")
    score = play_run(name, runs[0], seed, settings.out)
    scores = [run.final_score.mean for run in runs if run.final_score]
    print(f"{name}, seed {seed}: {verdict(scores, score)}")


if __name__ == "__main__":
    run_command(main)
