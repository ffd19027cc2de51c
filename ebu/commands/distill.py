"""Compress a trained agent into small ones, and measure what they keep of it.

python distill.py runs/pong-ebu-default-seed0 --students net1 net2 net3 --out runs/pong-students
"""

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from tqdm import tqdm

from agents import TrainedAgent, load_agent
from agents.distillation.dataset import StateSet
from agents.distillation.deploy import deploy, read_exports
from agents.distillation.deploy.export import require_export
from agents.distillation.experimental import EXPERIMENTAL
from agents.distillation.experimental.ensembles import Member, as_ensemble
from agents.distillation.experimental.mutual import alone
from agents.distillation.pipeline import Offline, Pupil
from agents.distillation.procedures import taught
from agents.distillation.records import (
    StudentRecord,
    TeacherRecord,
    chosen,
    retention,
    student_name,
)
from agents.distillation.report import (
    EXPORT,
    REPORT,
    STUDENTS,
    TEACHER,
    export_name,
    write_report,
)
from agents.distillation.settings import MAY_CHANGE, DistillConfig
from agents.distillation.sources import MADE_UP, PLAY, Stopped
from ebu.commands.distilling.build import (
    configs_of,
    games_of,
    load_teachers,
    networks_of,
    procedure_for,
)
from ebu.commands.distilling.from_scratch import beginners, train_from_scratch
from ebu.commands.table.provenance import code_version
from ebu.errors import EbuError, UsageError
from ebu.evaluation import random_play
from ebu.run.cli import parse, run_command, stop_on_signals
from ebu.run.directory import open_run_directory, read_earlier_config
from ebu.run.hints import tensorboard_command
from ebu.run.machine import Machine, choose_machine, prepare_torch
from ebu.run.settings import flat

TYPED_PATHS = frozenset({"run_dirs", "states_from"})
# Where nobody watches a bar, a line of it now and then.
LIVE_SECONDS, PLAIN_SECONDS = 0.2, 30.0


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = parse(
        DistillConfig,
        sys.argv[1:],
        prog="distill.py",
        description="Compress a trained agent into small ones, and measure what they keep of it.",
    )
    stopped_by: list[int] = []
    stop_on_signals(stopped_by.append)
    try:
        outcomes = run(config, should_stop=lambda: bool(stopped_by))
    except Stopped:
        say("stopped: run the same command again to continue")
        return 128 + stopped_by[0]
    return max([verdict(*outcome) for outcome in outcomes])


class Outcome(NamedTuple):
    """What came of one game; its settings name that game's runs, and a directory of its own."""

    config: DistillConfig
    teacher: TeacherRecord
    students: list[StudentRecord]


def run(config: DistillConfig, *, should_stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
    """Distil as configured, or go on with it; what came of each game.

    Raises `UsageError` for what cannot be done, before anything is played, `EbuError` for damaged
    files and a full disk, `Stopped` once `should_stop` says so.
    """
    pupils = config.plan()
    check_export(config)
    before = read_earlier_config(config.out)
    machine = choose_machine(config.device, config.threads, config.precision, before)
    for line in machine.warnings:
        say(f"warning: {line}")
    prepare_torch(machine.device, machine.threads)
    games = load_teachers(config, pupils, machine.device)
    asked, config = config, replace(config, **machine.settings())
    configs = configs_of(config, games)
    procedures, untaught = {}, []
    for game, members in games.items():
        for line in (line for member in members for line in member.agent.warnings):
            say(f"warning: {line}")
        teacher = members[0].agent
        networks = networks_of(configs[game], teacher, pupils, games=len(games))
        if config.from_scratch:
            settings, frames = teacher.config["settings"], config.from_scratch
            untaught = beginners(config.out, networks, settings, frames=frames, seed=config.seed)
        procedures[game] = procedure_for(
            configs[game], teacher, should_stop=should_stop, bar=bar, say=say
        )
    warn(config, pupils)
    with opened(config, games, machine, before), contextlib.ExitStack() as reports:
        say(f"{config.out}: watch it with: {tensorboard_command(config.out)}")
        outcomes, states = {}, {}
        for game, members in games.items():
            reports.enter_context(reported(configs[game]))
            if len(games) > 1:
                say(f"{game}:")
            if len(members) > 1:
                procedures[game] = as_ensemble(procedures[game], members)
            record, states[game] = prepare(configs[game], procedures[game], alone(pupils[0]))
            outcomes[game] = Outcome(configs[game], record, [])
        for game, student in taught(config.procedures, config.out, procedures, pupils, states):
            outcomes[game].students.append(student)
            where = f"{game}: " if len(games) > 1 else ""
            say(where + described(student, outcomes[game].teacher))
        for game, outcome in outcomes.items():
            if untaught:
                outcome.students.extend(
                    train_from_scratch(
                        procedures[game],
                        procedures[game].lesson(states[game], pupils[0].weights),
                        untaught,
                        frames=config.from_scratch,
                        machine=("--device", asked.device, "--threads", str(asked.threads)),
                        code=code_version(),
                    )
                )
            if config.export:
                export(procedures[game], best_of(config, outcome.students), states[game])
    return list(outcomes.values())


def check_export(config: DistillConfig) -> None:
    """Raise `UsageError` where files are to be exported and packages are missing."""
    if config.export:
        try:
            require_export()
        except UsageError as error:
            raise UsageError(f"{error}, or leave that out with --no-export") from None


def warn(config: DistillConfig, pupils: Sequence[Pupil]) -> None:
    """Say what is asked for that nothing speaks for yet."""
    names = {config.states_from} | {name for pupil in pupils for name in pupil.weights}
    for name in sorted(names & EXPERIMENTAL.keys()):
        say(EXPERIMENTAL[name])
    if config.states_from in MADE_UP:
        say(
            f"{config.states_from}: a baseline on made-up states, those held out included; the "
            "scores alone are of the game"
        )


def prepare(
    config: DistillConfig, procedure: Offline, scout: Pupil
) -> tuple[TeacherRecord, StateSet]:
    """The teacher's scores, and the states that students are taught on."""
    baselines = procedure.baselines(random_play(procedure.teacher.num_actions))
    say(
        f"teacher: {baselines.teacher['mean']:,.2f} in {baselines.teacher['games']} games; "
        f"random play: {baselines.random['mean']:,.2f}; always action "
        f"{baselines.constant['action']}: {baselines.constant['evaluation']['mean']:,.2f}"
    )
    rounds = config.rounds if config.states_from == PLAY else 1
    states = procedure.gather(config.states_from, config.states, rounds, config.num_envs, scout)
    record = procedure.describe_teacher(states, baselines, rounds)
    say(f"{len(states):,} states, temperature {record['temperature']:.4g}")
    return record, states.to(procedure.teacher.device)


def best_of(config: DistillConfig, students: Sequence[StudentRecord]) -> list[StudentRecord]:
    """The chosen student of each name, taught by the main method; of its last generation."""
    main = config.procedures.result(students[0]["method"])
    return [
        chosen([s for s in students if (s["student"], s["method"]) == (name, main)])
        for name in config.students
    ]


def export(procedure: Offline, students: Sequence[StudentRecord], states: StateSet) -> None:
    """Export the teacher and these students, unless that is done already.

    Raises `Stopped` where told to stop, `EbuError` where a file computes something else than torch
    or cannot be written.
    """
    directory, cpu = procedure.out / EXPORT, torch.device("cpu")
    teacher = procedure.teacher
    agents = {
        TEACHER: TrainedAgent(
            copy.deepcopy(teacher.network), teacher.outputs, teacher.config, teacher.frames, cpu, []
        )
    }
    for student in students:
        name, method, seed = student["student"], student["method"], student["seed"]
        path = procedure.out / STUDENTS / student_name(name, method, seed)
        agents[export_name(name, method)] = load_agent(path)
    deployed = read_exports(directory)
    seeds = {name: agent.config["settings"]["seed"] for name, agent in agents.items()}
    found = {
        name: record["seed"]
        for name, record in deployed["exports"].items()
        if record["int8"]["evaluation"]["games"] == procedure.examination.evaluator.episodes
    }
    if found == {name: seed for name, seed in seeds.items() if name not in deployed["left_out"]}:
        return
    say(f"exporting {', '.join(agents)}")
    evaluator = replace(procedure.examination.evaluator, device=cpu)
    examination = replace(procedure.examination, evaluator=evaluator)
    on_cpu = replace(procedure, examination=examination)
    deploy(
        directory,
        agents,
        states.to(cpu),
        lambda act: on_cpu.score("int8", act),
        games=procedure.examination.evaluator.episodes,
    )


@contextlib.contextmanager
def reported(config: DistillConfig) -> Iterator[None]:
    """Write the report of what is measured, at the end and where the command is stopped."""
    try:
        yield
    except Stopped:
        if (config.out / "teacher.json").exists():
            write_report(config.out)
        raise
    write_report(config.out)


def places_of(config: DistillConfig) -> dict[str, Any]:
    """The directories that are read, by their ways from the one that is written.

    So they are the same from every working directory, and where all are moved together.
    """
    out = config.out.resolve()

    def way(path: Path) -> str:
        return os.path.relpath(path.resolve(), out)

    source = Path(config.states_from)
    return {
        "run_dirs_from_out": [way(run_dir) for run_dir in config.run_dirs],
        "states_from_out": way(source) if source.is_dir() else config.states_from,
    }


@contextlib.contextmanager
def opened(
    config: DistillConfig,
    games: Mapping[str, Sequence[Member]],
    machine: Machine,
    before: dict[str, Any] | None,
) -> Iterator[IO[str]]:
    """Create or resume the output directory under an exclusive lock.

    `before` is its config.json, if there was one.

    Raises `UsageError` for one that was begun with other settings, or is in use.
    """
    teachers = [member.agent for members in games.values() for member in members]
    description = {
        "settings": {
            **flat(config),
            "games": max(games_of(config, teacher) for teacher in teachers),
            "run_dirs": [str(run_dir) for run_dir in config.run_dirs],
            "teacher_frames": [teacher.frames for teacher in teachers],
            **(places := places_of(config)),
        },
        "automatic": machine.automatic,
        "environment": teachers[0].config["environment"],
    }
    may_change = MAY_CHANGE | set(machine.automatic)
    recorded = {} if before is None else before["settings"]
    # Earlier versions recorded paths as they were typed alone, and no games if none were typed.
    may_change |= TYPED_PATHS if places.keys() <= recorded.keys() else places.keys()
    if recorded.get("games", 0) is None:
        may_change |= {"games"}
    try:
        lock = open_run_directory(
            config.out, description, may_change=may_change, may_grow=config.may_grow
        )
    except EbuError as error:
        # Here the directory's flag has another name.
        raise type(error)(str(error).replace("--run-dir", "--out")) from error
    with lock:
        yield lock


def verdict(config: DistillConfig, teacher: TeacherRecord, students: list[StudentRecord]) -> int:
    """Name the chosen students; the exit code, 1 where one keeps less than was asked for."""
    failed = []
    for student in best_of(config, students):
        kept = retention(student["evaluation"], teacher)
        print(f"chosen: {described(student, teacher)}")
        if config.min_retention is not None and (kept is None or kept < config.min_retention):
            failed.append(student["student"])
    say(f"report: {config.out / REPORT}")
    if failed:
        say(
            f"less than --min-retention {config.min_retention:g} of the teacher's score kept: "
            f"{', '.join(failed)}"
        )
    return 1 if failed else 0


def described(student: StudentRecord, teacher: TeacherRecord) -> str:
    """One line on a student that is taught and scored."""
    held_out, kept = student["held_out"], retention(student["evaluation"], teacher)
    share = "the teacher is no better than random play" if kept is None else f"keeps {kept:.1%}"
    return (
        f"{student['student']}, {student['method']}, seed {student['seed']}: "
        f"{student['evaluation']['mean']:,.2f}, {share}; held-out loss {held_out['loss']:.4g}, "
        f"agreement {held_out['agreement']:.1%}; taught in {student['seconds']:,.0f} s"
    )


@contextlib.contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much of something is done."""
    every = LIVE_SECONDS if sys.stderr.isatty() else PLAIN_SECONDS
    with tqdm(
        desc=what,
        total=total,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=every,
        maxinterval=every,
        dynamic_ncols=True,
    ) as shown:
        yield lambda done: shown.update(done - shown.n)


def say(line: str) -> None:
    """A line on standard error."""
    tqdm.write(line, file=sys.stderr)


def command() -> None:
    """Run the command with the words of the command line, and exit."""
    run_command(main)


if __name__ == "__main__":
    command()
