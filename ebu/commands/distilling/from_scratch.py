"""A distillation's baseline without a teacher: a student's network that learns from games alone.

train.py trains it with the settings of the teacher's run, evaluate.py scores it in the students'
games. Its directory is a run directory among those of the students.
"""

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from agents import AGENTS, load_agent
from agents.distillation.pipeline import Offline, examined_as_policy
from agents.distillation.records import (
    Score,
    StudentRecord,
    read_record,
    student_name,
    write_record,
)
from agents.distillation.report import SCRATCH, STUDENTS
from agents.distillation.sources import Stopped
from agents.distillation.students import multiply_adds, num_parameters
from agents.distillation.trainer import Lesson
from ebu.commands.table.jobs import Task, run_tasks
from ebu.commands.table.provenance import read_processes
from ebu.commands.train_arguments import flags_of, parse_arguments
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest
from ebu.run.directory import read_config
from ebu.run.hints import program_argv
from ebu.run.settings import flat

# Settings of the teacher's run that are not taken: the run's own, and the machine's.
_OWN = frozenset(
    {
        *("agent", "preset", "network", "frames", "seed", "run_dir", "eval_every_frames"),
        *("device", "threads", "checkpoint_minutes", "profile"),
    }
)
# evaluate.py writes here; what it has finished writing becomes a record.
_DRAFT = ".evaluation.json"


class Beginner(NamedTuple):
    """A student's network that is to learn from games: whose, where, by which flags of train.py."""

    student: str
    run_dir: Path
    flags: tuple[str, ...]

    @property
    def result(self) -> Path:
        """Where its record lies."""
        return self.run_dir / "result.json"


def beginners(
    out: Path,
    networks: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    frames: int,
    seed: int,
) -> list[Beginner]:
    """One for each student.

    | argument | meaning |
    | --- | --- |
    | out | directory of the distillation |
    | networks | names of networks by the names of students |
    | settings | of the teacher's run, as in its config.json |
    | frames, seed | emulator frames and seed of each run |

    Raises `UsageError` for a teacher that was not trained on games, or with settings that train.py
    does not have.
    """
    agent, preset = str(settings["agent"]), str(settings.get("preset", "default"))
    if agent not in AGENTS:
        raise UsageError(
            f"--from-scratch trains as the teacher was trained, and this one is a {agent}: leave "
            "the flag out"
        )
    head = ["--game", str(settings["game"]), "--agent", agent, "--preset", preset]
    usual = flat(parse_arguments(head))
    taken = {name: value for name, value in settings.items() if name not in _OWN}
    found = []
    for student, network in networks.items():
        run_dir = out / STUDENTS / student_name(student, SCRATCH, seed)
        own = {"network": network, "frames": frames, "seed": seed, "run_dir": run_dir}
        wanted = {**taken, **own, "eval_every_frames": 0}
        changed = {
            name: value
            for name, value in wanted.items()
            if name not in usual or value != usual[name]
        }
        flags = (*head, *flags_of(changed, usual))
        try:
            parse_arguments(flags)
        except UsageError as error:
            raise UsageError(f"--from-scratch cannot train as the teacher was: {error}") from error
        found.append(Beginner(student, run_dir, flags))
    return found


def train_from_scratch(
    procedure: Offline,
    lesson: Lesson,
    beginners: Sequence[Beginner],
    *,
    frames: int,
    machine: Sequence[str],
    code: dict[str, str],
) -> list[StudentRecord]:
    """Train and score all of them, or find their records.

    | argument | meaning |
    | --- | --- |
    | lesson | on whose held-out states they are measured |
    | frames | emulator frames of each run; one that was shorter goes on |
    | machine | flags of device and threads, as asked for: the runs keep what they started with |
    | code | what of the code is noted with every process |

    Raises `Stopped` where a signal ended it, which then reaches this process's own handlers, and
    `EbuError` where a run failed.
    """
    games = procedure.examination.evaluator.episodes
    waiting = [each for each in beginners if not _is_done(each, frames, games)]
    by_name = {each.run_dir.name: each for each in waiting}

    def scored(task: Task) -> str:
        record = _record(procedure, lesson, by_name[task.name])
        write_record(by_name[task.name].result, record)
        return f"{record['evaluation']['mean']:,.2f} in {record['evaluation']['games']} games"

    if waiting:
        tasks = [_task(procedure, each, frames, machine) for each in waiting]
        failed, stopped_by = run_tasks(tasks, 1, code=code, scored=scored)
        if stopped_by is not None:
            signal.raise_signal(stopped_by)
            raise Stopped
        if failed:
            raise EbuError(
                f"training {' and '.join(failed)} on games failed: see {tasks[0].log.parent}/"
                f"{failed[0]}.log; the same command goes on"
            )
    return [cast(StudentRecord, read_record(each.result, StudentRecord)) for each in beginners]


def _is_done(beginner: Beginner, frames: int, games: int) -> bool:
    record = read_record(beginner.result, StudentRecord)
    if record is None:
        return False
    trained = read_config(beginner.run_dir)["settings"]["frames"]
    if trained >= frames and record["evaluation"]["games"] == games:
        return True
    # Measured on a shorter run, or in fewer games.
    beginner.result.unlink()
    return False


def _task(procedure: Offline, beginner: Beginner, frames: int, machine: Sequence[str]) -> Task:
    examination = procedure.examination
    return Task(
        run_dir=beginner.run_dir,
        frames=frames,
        train=program_argv("train.py", *beginner.flags, *machine),
        evaluate=program_argv(
            "evaluate.py",
            *(beginner.run_dir, *machine),
            # The games of all others.
            *("--episodes", str(examination.evaluator.episodes), "--seed", str(examination.seed)),
            *("--json", beginner.run_dir / _DRAFT),
        ),
    )


def _record(procedure: Offline, lesson: Lesson, beginner: Beginner) -> StudentRecord:
    run_dir, states = beginner.run_dir, lesson.states
    agent = load_agent(run_dir, device=states.device)
    checkpoint = load_latest(run_dir / "checkpoints", state_only=True)
    assert checkpoint is not None
    evaluation = json.loads((run_dir / _DRAFT).read_text(encoding="utf-8"))
    settings, environment = agent.config["settings"], agent.config["environment"]
    trained = [each for each in read_processes(run_dir) if each["program"] == "train.py"]
    return {
        "student": beginner.student,
        "network": settings["network"],
        "method": SCRATCH,
        "seed": settings["seed"],
        "outputs": agent.outputs,
        "parameters": num_parameters(agent.network),
        "multiply_adds": multiply_adds(
            agent.network, stack=states.stack, frame_shape=tuple(states.frames.shape[1:])
        ),
        "updates": checkpoint.state["updates"],
        "states": agent.frames // environment["frames_per_step"],
        "seconds": sum(each["seconds"] for each in trained),
        "held_out": examined_as_policy(agent, lesson),
        "evaluation": cast(Score, {key: evaluation[key] for key in Score.__annotations__}),
    }
