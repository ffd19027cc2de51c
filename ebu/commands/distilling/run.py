"""Run a distillation: score the teachers, collect states, train, score and export students."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from agents.distillation.dataset import Dataset
from agents.distillation.deploy.deployment import deploy_students, load_students
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import TEACHER_FILE, StudentRecord, TeacherRecord
from agents.distillation.report.retention import describe
from agents.distillation.report.text import write_report
from agents.distillation.settings import (
    SYNTHETIC,
    WARNINGS,
    DistillConfig,
    Stopped,
    StudentSpec,
    load_experimental,
)
from agents.distillation.training import train_students
from ebu.commands.distilling.build import (
    build_pipelines,
    check_students,
    check_teachers,
    leave_out_large,
    open_output,
)
from ebu.commands.distilling.from_scratch import plan_runs, train_from_scratch
from ebu.run.busy_cores import note_busy_cores, threads_left_automatic
from ebu.run.directory import read_earlier_config
from ebu.run.hints import tensorboard_command
from ebu.run.machine import choose_machine, prepare_torch
from ebu.run.progress import say


class Outcome(NamedTuple):
    """The records of one game; its settings name that game's runs and directory."""

    config: DistillConfig
    teacher: TeacherRecord
    students: list[StudentRecord]


def run(config: DistillConfig, *, should_stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
    """Distil as configured, or resume: the outcome of each game.

    Raises `UsageError` for what cannot be done, before anything is played, `EbuError` for damaged
    files and a full disk, `Stopped` once `should_stop` says so.
    """
    specs = config.plan()
    before = read_earlier_config(config.out)
    machine = choose_machine(config.device, config.threads, config.precision, before)
    for line in machine.warnings:
        say(f"warning: {line}")
    prepare_torch(machine.device, machine.torch_threads, precision=machine.precision)
    games = check_teachers(config, specs, machine.device)
    config = leave_out_large(config, games)
    specs = config.plan()
    asked, config = config, replace(config, **machine.settings())
    pipelines = build_pipelines(config, games, should_stop)
    runs = []
    for game, members in games.items():
        for line in (line for member in members for line in member.agent.warnings):
            say(f"warning: {line}")
        pipeline = pipelines[game]
        networks = check_students(pipeline.config, pipeline.teacher, specs, games=len(games))
        if config.from_scratch:
            runs = plan_runs(config, networks, pipeline.teacher.config["settings"])
    warn(config, specs)
    advice = "stop with Ctrl-C, and run the same command with --threads 1"
    with (
        open_output(config, games, machine, before),
        note_busy_cores(threads_left_automatic(machine.automatic), advice),
        contextlib.ExitStack() as reports,
    ):
        say(f"{config.out}: watch it with: {tensorboard_command(config.out)}")
        outcomes: dict[str, Outcome] = {}
        datasets: dict[str, Dataset] = {}
        for game, members in games.items():
            pipeline = pipelines[game]
            reports.enter_context(reporting(pipeline.config))
            if len(games) > 1:
                say(f"{game}:")
            if len(members) > 1:
                pipeline = load_experimental("ensemble").join_teachers(pipeline, members)
                pipelines[game] = pipeline
            record, datasets[game] = prepare(pipeline, specs[0])
            outcomes[game] = Outcome(pipeline.config, record, [])
        for game, student in train_students(pipelines, specs, datasets, config.out):
            outcomes[game].students.append(student)
            where = f"{game}: " if len(games) > 1 else ""
            say(where + describe(student, outcomes[game].teacher))
        for game, outcome in outcomes.items():
            pipeline, dataset = pipelines[game], datasets[game]
            if runs:
                supervision = pipeline.supervise(dataset, specs[0].weights)
                outcome.students.extend(train_from_scratch(pipeline, supervision, runs, asked))
            if config.export:
                exported = config.exported_of(outcome.students)
                students = load_students(pipeline.config.out, exported)
                deploy_students(pipeline, students, dataset)
    return list(outcomes.values())


def warn(config: DistillConfig, specs: Sequence[StudentSpec]) -> None:
    """Print a warning for everything experimental."""
    names = {config.states_from} | {name for spec in specs for name in spec.weights}
    for name in sorted(names & WARNINGS.keys()):
        say(WARNINGS[name])
    if config.states_from in SYNTHETIC:
        say(
            f"{config.states_from}: a baseline on synthetic states, the held-out ones too; only "
            "the scores are of the game"
        )


def prepare(pipeline: Pipeline, spec: StudentSpec) -> tuple[TeacherRecord, Dataset]:
    """Score the teacher and collect the states."""
    baselines = pipeline.baselines()
    say(
        f"teacher: {baselines.teacher['mean']:,.2f} in {baselines.teacher['games']} games; "
        f"random play: {baselines.random['mean']:,.2f}; always action "
        f"{baselines.constant['action']}: {baselines.constant['evaluation']['mean']:,.2f}"
    )
    dataset = pipeline.collect_states(spec)
    record = pipeline.describe_teacher(dataset, baselines)
    say(f"{len(dataset):,} states, temperature {record['temperature']:.4g}")
    return record, dataset.to(pipeline.teacher.device)


@contextlib.contextmanager
def reporting(config: DistillConfig) -> Iterator[None]:
    """Write the report at the end, and of what there is if the command is stopped."""
    try:
        yield
    except Stopped:
        if (config.out / TEACHER_FILE).exists():
            write_report(config.out, config.main_method)
        raise
    write_report(config.out, config.main_method)
