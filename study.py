"""Play a table of games, agents and seeds with the main command, and score every run once.

    python study.py --games atari5 --agents ebu dqn --seeds 3 --frames 10000000 --jobs 2

The same command goes on where it was stopped. Flags of train.py for every run stand after `--`.
"""

import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ebu.commandline import all_cores, parse, run_command
from ebu.errors import EbuError, UsageError
from envs.protocols import PROTOCOLS
from studies.jobs import Task, say, work_off
from studies.plan import PlannedRun, StudyConfig, check_settings, plan
from studies.results import ResultsTable
from studies.runs import EVALUATION, Run, normalised, read_run

ROOT = Path(__file__).resolve().parent
# evaluate.py writes here; what it has finished writing gets its name.
EVALUATION_DRAFT = f".{EVALUATION}"


def main() -> int:
    args = sys.argv[1:]
    cut = args.index("--") if "--" in args else len(args)
    config = parse(
        StudyConfig,
        args[:cut],
        prog="study.py",
        description="Play a table of games, agents and seeds. The same command goes on where it "
        "was stopped. Flags of train.py for every run stand after --",
    )
    planned = plan(config, args[cut + 1 :])
    with locked(config.out):
        table = ResultsTable(config.out, say)
        check_settings(planned)
        unscored = [run for run in planned if not run.is_scored()]
        say(
            f"{config.out}: {len(planned)} runs, {len(planned) - len(unscored)} of them scored, "
            f"{min(config.jobs, len(unscored))} at a time"
        )
        table.fill()

        def scored(task: Task) -> str:
            publish(task)
            table.fill()
            return described(read_run(task.run_dir))

        threads = max(1, all_cores() // config.jobs)
        failed, stopped_by = work_off(
            [task_of(run, run.threads(threads)) for run in unscored],
            config.jobs,
            code=code_version(),
            scored=scored,
        )
        table.fill()
    if failed:
        say(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}")
    if stopped_by is not None:
        say("stopped: the same command goes on")
        return 128 + stopped_by
    say(f"{table.path}: {len(planned) - len(failed)} of {len(planned)} runs scored")
    if failed:
        return 1
    say(f"compare them with: python report.py {config.out}")
    return 0


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other studies away from a directory. Raises `UsageError` if one is there already."""
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        lock = (out / "lock").open("w")
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written: {error.strerror}; choose another directory"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another study is filling {out}: stop it or choose another --out"
            ) from None
        yield


def task_of(run: PlannedRun, threads: int) -> Task:
    """The commands of a run."""
    python, run_dir = sys.executable, str(run.run_dir)
    draft = str(run.run_dir / EVALUATION_DRAFT)
    options = ["--threads", str(threads)]
    scoring = [*options, "--device", run.config.device, "--json", draft]
    return Task(
        run_dir=run.run_dir,
        frames=run.config.frames,
        train=(python, str(ROOT / "train.py"), *run.flags, *options),
        evaluate=(python, str(ROOT / "evaluate.py"), run_dir, *scoring),
    )


def publish(task: Task) -> None:
    """Give a whole evaluation its name. Raises `EbuError` where that fails."""
    draft = task.run_dir / EVALUATION_DRAFT
    try:
        draft.replace(task.run_dir / EVALUATION)
    except OSError as error:
        raise EbuError(f"{draft} cannot be renamed: {error.strerror}") from error


def described(run: Run) -> str:
    """What a scored run scored."""
    score = run.score
    assert score is not None
    line = f"{score.mean:,.2f} in {score.games} games"
    if score.interval is not None:
        low, high = score.interval
        line += f" (95 % interval {low:,.2f} to {high:,.2f})"
    table = PROTOCOLS[score.protocol].human_table
    share = normalised(run.game, score.mean, table)
    return line if share is None else f"{line}, human-normalised {share:.1%} ({table})"


def code_version() -> dict[str, str]:
    """Version and commit of the code that plays, as far as they are known."""
    try:
        version = metadata.version("ebu")
    except metadata.PackageNotFoundError:
        version = ""
    commit = ""
    if (ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(
                ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
    return {"ebu_version": version, "commit": commit}


if __name__ == "__main__":
    run_command(main)
