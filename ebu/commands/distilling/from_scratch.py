"""A baseline without a teacher: a student's network trained on games alone.

train.py trains it with the settings of the teacher's run, evaluate.py scores it in the students'
games. Its run directory is among those of the students.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from agents import AGENTS, TrainedAgent, load_agent
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import (
    RESULT_FILE,
    SCRATCH,
    STUDENTS,
    GameScores,
    HeldOut,
    StudentRecord,
    read_record,
    student_name,
    write_record,
)
from agents.distillation.settings import DistillConfig, Stopped
from agents.distillation.students import Student, digest_of, network_sizes
from agents.distillation.trainer import Supervision
from agents.networks import QNetwork
from ebu.commands.studying.engine import LocalEngine
from ebu.commands.studying.jobs import run_tasks
from ebu.commands.studying.player import Task
from ebu.commands.studying.provenance import code_version, read_processes
from ebu.commands.train_arguments import flags_of, parse_arguments
from ebu.commands.trust import trust_words
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest
from ebu.run.directory import read_config
from ebu.run.hints import program_argv
from ebu.run.reading import read_json
from ebu.run.settings import flat

# Settings of the teacher's run that are not taken over: the run's own, the machine's, and what gave
# the teacher other weights to start from or students.
_OWN = frozenset(
    {
        *("agent", "preset", "network", "frames", "seed", "run_dir", "eval_every_frames"),
        *("device", "threads", "checkpoint_minutes", "profile"),
        *("init_from", "distill", "fresh_games"),
    }
)
# evaluate.py writes here; a record is made of it.
_DRAFT = ".evaluation.json"


class ScratchRun(NamedTuple):
    """A run of train.py: of which student's network, where, with which flags."""

    student: str
    run_dir: Path
    flags: tuple[str, ...]

    @property
    def result(self) -> Path:
        """The path of its record."""
        return self.run_dir / RESULT_FILE


def plan_runs(
    config: DistillConfig, networks: Mapping[str, str], settings: Mapping[str, Any]
) -> list[ScratchRun]:
    """A run for each student.

    | argument | meaning |
    | --- | --- |
    | networks | names of networks by the names of students |
    | settings | of the teacher's run, as in its config.json |

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
        run_dir = config.out / STUDENTS / student_name(student, SCRATCH, config.seed)
        wanted = {
            **taken,
            "network": network,
            "frames": config.from_scratch,
            "seed": config.seed,
            "run_dir": run_dir,
            "eval_every_frames": 0,
        }
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
        found.append(ScratchRun(student, run_dir, flags))
    return found


def train_from_scratch(
    pipeline: Pipeline, supervision: Supervision, runs: Sequence[ScratchRun], asked: DistillConfig
) -> list[StudentRecord]:
    """Train and score all runs, or load their records.

    | argument | meaning |
    | --- | --- |
    | supervision | on whose held-out states they are measured |
    | asked | the settings as asked for: the runs choose device and threads themselves |

    Raises `Stopped` after a signal, which is raised again for this process's own handlers, and
    `EbuError` where a run failed.
    """
    frames = pipeline.config.from_scratch
    waiting = [each for each in runs if not _is_done(each, frames, pipeline.games)]
    by_name = {each.run_dir.name: each for each in waiting}

    def scored(task: Task) -> str:
        record = _record(supervision, by_name[task.name])
        write_record(by_name[task.name].result, record)
        return f"{record['evaluation']['mean']:,.2f} in {record['evaluation']['games']} games"

    if waiting:
        machine = ("--device", asked.device, "--threads", str(asked.threads))
        tasks = [_task(pipeline, each, machine) for each in waiting]
        failed, stopped_by = run_tasks(tasks, 1, engine=LocalEngine(code_version()), scored=scored)
        if stopped_by is not None:
            signal.raise_signal(stopped_by)
            raise Stopped
        if failed:
            raise EbuError(
                f"training {' and '.join(failed)} from scratch failed: see {tasks[0].log.parent}/"
                f"{failed[0]}.log; run the same command again to resume"
            )
    return [cast(StudentRecord, read_record(each.result, StudentRecord)) for each in runs]


def _is_done(run: ScratchRun, frames: int, games: int) -> bool:
    record = read_record(run.result, StudentRecord)
    if record is None:
        return False
    trained = read_config(run.run_dir)["settings"]["frames"]
    if trained >= frames and record["evaluation"]["games"] == games:
        return True
    # Measured on a shorter run, or in fewer games.
    run.result.unlink()
    return False


def _task(pipeline: Pipeline, run: ScratchRun, machine: Sequence[str]) -> Task:
    return Task(
        run_dir=run.run_dir,
        frames=pipeline.config.from_scratch,
        train=program_argv("train.py", *run.flags, *machine),
        evaluate=program_argv(
            "evaluate.py",
            *(run.run_dir, *machine),
            # The games of all other scores.
            *("--episodes", str(pipeline.games), "--seed", str(pipeline.config.seed)),
            *("--json", run.run_dir / _DRAFT),
            *trust_words(pipeline.teacher.config["settings"]),
        ),
    )


def _record(supervision: Supervision, run: ScratchRun) -> StudentRecord:
    run_dir = run.run_dir
    agent = load_agent(run_dir, device=supervision.dataset.device)
    checkpoint = load_latest(run_dir / "checkpoints", state_only=True)
    assert checkpoint is not None
    try:
        evaluation = read_json(run_dir / _DRAFT, GameScores)
    except (OSError, ValueError) as error:
        raise EbuError(f"{run_dir / _DRAFT} cannot be read ({error}): score it again") from error
    settings, environment = agent.config["settings"], agent.config["environment"]
    trained = [each for each in read_processes(run_dir) if each["program"] == "train.py"]
    return {
        "student": run.student,
        "network": settings["network"],
        "method": SCRATCH,
        "seed": settings["seed"],
        "outputs": agent.outputs,
        **network_sizes(agent.network, environment),
        "updates": checkpoint.state["updates"],
        "states": agent.frames // environment["frames_per_step"],
        "seconds": sum(each["seconds"] for each in trained),
        "held_out": measure_as_policy(agent, supervision),
        "evaluation": cast(
            GameScores, {key: evaluation[key] for key in GameScores.__annotations__}
        ),
        "weights": digest_of(agent.network),
    }


class _AsPolicy(Student):
    """Action values divided by the teacher's temperature: logits, as the teacher's are."""

    def __init__(self, network: QNetwork, temperature: float) -> None:
        super().__init__("", network, "logits")
        self._temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) / self._temperature


def measure_as_policy(agent: TrainedAgent, supervision: Supervision) -> HeldOut:
    """Measure an agent of action values on held-out states: its loss is that of its policy."""
    assert isinstance(agent.network, QNetwork)
    student = _AsPolicy(agent.network, supervision.temperature)
    return replace(supervision, weights={"kl": 1.0}).measure(student)
