"""Train every agent on every game with every seed, and score every run once.

    python study.py --games atari5 --agents ebu dqn --seeds 3 --frames 10000000 --jobs 2

The same command resumes it, on another machine too where results are committed. Flags of train.py
for every run follow `--`.
"""

import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ebu.commands.reporting.published import normalised
from ebu.commands.reporting.runs import Run, find_run_directories, read_run
from ebu.commands.studying.committed import write_result
from ebu.commands.studying.engine import check_engine, open_engine
from ebu.commands.studying.jobs import run_tasks
from ebu.commands.studying.plan import PlannedRun, StudyConfig, check_settings, plan
from ebu.commands.studying.player import Task
from ebu.commands.studying.precision import in_one_precision, one_precision, precisions_in
from ebu.commands.studying.provenance import machine
from ebu.commands.studying.results import ResultsTable
from ebu.commands.trust import trust_words
from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse, run_command
from ebu.run.directory import CONFIG, acquire_lock, check_links
from ebu.run.files import is_there
from ebu.run.hardware import all_cores, spared_threads
from ebu.run.hints import program_argv, program_command
from ebu.run.progress import say
from envs.protocols import PROTOCOLS


def main() -> int:
    """Plan the study, play what is missing and write its table; returns the exit code."""
    args = sys.argv[1:]
    cut = args.index("--") if "--" in args else len(args)
    config = parse(
        StudyConfig,
        args[:cut],
        prog="study.py",
        description="Train every agent on every game with every seed, and score each run. Run the "
        "same command again to resume. Flags of train.py for every run follow --",
    )
    check_engine(config)
    planned = plan(config, args[cut + 1 :])
    with contextlib.ExitStack() as locks:
        for flag, directory in directories_of(config).items():
            if is_there(directory / CONFIG):
                raise UsageError(f"{flag} {directory} holds a run: choose another directory")
            busy = f"another study is filling {directory}"
            locks.enter_context(acquire_lock(directory, flag, busy))
            # Logs lie next to the runs, which are checked when they are opened.
            check_links(directory)
        return play(config, planned)


def directories_of(config: StudyConfig) -> dict[str, Path]:
    """The directories that a study fills, by their flags; both may be the same."""
    results = config.results
    if results is None or results.resolve() == config.out.resolve():
        return {"--out": config.out}
    if results.resolve() == (config.out / "runs").resolve():
        raise UsageError(f"--results {results} holds the runs of --out: choose another directory")
    return {"--out": config.out, "--results": results}


def play(config: StudyConfig, planned: Sequence[PlannedRun]) -> int:
    """Play and score what is missing of the planned runs; returns the exit code."""
    (config.out / "runs").mkdir(exist_ok=True)
    folder, flag = config.results or config.out, "--results" if config.results else "--out"
    runs = config.results or config.out / "runs"
    table = ResultsTable(folder, runs, config.episodes, flag=flag)
    check_settings(planned)
    recorded = one_precision(precisions_in(runs, config.out / "runs"), folder)
    recorded = collect(config, planned, recorded)
    for run in planned:
        if run.result_dir is not None and not run.is_done() and run.is_scored():
            write_result(run.run_dir, run.result_dir, run.games)
    unscored = [run for run in planned if not run.is_done()]
    together = f"{min(config.at_a_time, len(unscored))} at a time"
    if config.jobs is None and config.engine != "local":
        together = f"as many at a time as {config.engine} takes"
    say(f"{folder}: {len(planned)} runs, {len(planned) - len(unscored)} of them scored, {together}")
    table.fill()
    if unscored and not config.at_a_time:
        say(f"missing: {', '.join(run.name for run in unscored)}")
        return 0
    if config.engine != "local" and any(run.config.precision == "auto" for run in unscored):
        raise UsageError(
            "--precision auto is one machine's choice: on a cluster name it, such as -- "
            "--precision bfloat16"
        )
    waiting = {run.run_dir: run for run in in_one_precision(unscored, recorded, folder)}

    def scored(task: Task) -> str:
        run = waiting[task.run_dir]
        if not run.is_scored():
            raise EbuError(f"evaluate.py has left no score in {task.run_dir}: see {task.log}")
        if run.result_dir is not None:
            write_result(run.run_dir, run.result_dir, run.games)
        table.fill()
        return describe_score(read_run(run.run_dir, run.games))

    local = config.engine == "local"
    share = spared_threads(all_cores(), max(1, config.at_a_time)) if local else 1
    tasks = [task_of(run, run.threads(share)) for run in waiting.values()]
    failed, stopped_by = list[str](), None
    if tasks:
        with open_engine(config) as engine:
            failed, stopped_by = run_tasks(tasks, config.at_a_time, engine=engine, scored=scored)
    table.fill()
    if failed:
        say(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}")
    if stopped_by is not None:
        say("stopped: run the same command again to resume")
        return 128 + stopped_by
    say(f"{table.path}: {len(planned) - len(failed)} of {len(planned)} runs scored")
    if failed:
        return 1
    say(f"compare them with: {program_command('report.py', folder)}")
    return 0


def collect(
    config: StudyConfig, planned: Sequence[PlannedRun], precision: str | None
) -> str | None:
    """Copy the results of finished runs that were trained without the study.

    Returns the precision of the table, which is `precision` where it is known before. Raises
    `UsageError`, before anything is copied, where the table would have several.
    """
    found = runs_to_collect(config, planned) if config.collect else {}
    for _, of_run in found.values():
        if precision not in (None, of_run.precision):
            raise UsageError(
                f"--collect finds {of_run.directory} in {of_run.precision}, and others of this "
                f"table are in {precision}: add -- --precision {precision} to leave out what is "
                "not in it"
            )
        precision = of_run.precision
    code = {"commit": config.collect_commit, "hardware": machine()} if found else {}
    for result_dir, (run, of_run) in found.items():
        try:
            write_result(of_run.directory, result_dir, run.games, code)
            say(f"{of_run.directory}: collected as {result_dir}")
        except EbuError as error:
            say(f"warning: not collected: {error}")
    return precision


def runs_to_collect(
    config: StudyConfig, planned: Sequence[PlannedRun]
) -> dict[Path, tuple[PlannedRun, Run]]:
    """The finished runs under --collect that are planned and have no result, by its directory.

    A run that is unfinished, damaged, not planned, or a second one is named with the reason.
    """
    found: dict[Path, tuple[PlannedRun, Run]] = {}
    for run_dir in find_run_directories(config.collect):
        try:
            of_run = read_run(run_dir, config.episodes)
            if of_run.final_score is None or not of_run.final_score.final:
                say(f"{run_dir}: not collected, it has no score after all its frames")
                continue
            differing, run = min(
                ((run.differences_of(of_run), run) for run in planned),
                key=lambda pair: len(pair[0]),
            )
        except EbuError as error:
            say(f"warning: not collected: {error}")
            continue
        result_dir = run.result_dir
        assert result_dir is not None  # --collect needs --results
        if differing:
            say(f"{run_dir}: not collected, not planned: {'; '.join(differing)} in {run.name}")
        elif run.is_done():
            say(f"{run_dir}: not collected, {result_dir} is there already")
        elif result_dir in found:
            first = found[result_dir][1].directory
            say(f"{run_dir}: not collected, {first} is collected as {result_dir}")
        else:
            found[result_dir] = run, of_run
    return found


def task_of(run: PlannedRun, threads: int) -> Task:
    """The commands of a run."""
    options = ["--threads", str(threads)]
    scoring = [*options, "--device", run.config.device, "--episodes", str(run.games)]
    scoring += trust_words(run.settings)
    return Task(
        run_dir=run.run_dir,
        frames=run.config.frames,
        train=program_argv("train.py", *run.flags, *options),
        evaluate=program_argv("evaluate.py", run.run_dir, *scoring),
        cores=threads,
        device=run.config.device,
    )


def describe_score(run: Run) -> str:
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


command = partial(run_command, main)

if __name__ == "__main__":
    command()
