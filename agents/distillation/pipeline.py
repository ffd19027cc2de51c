"""The offline procedure: the teacher's score, states, students taught on them, their scores.

Whatever is finished is on the disk, and a procedure that was stopped or killed finds it there.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from agents.distillation.dataset import StateSet, hard_targets, join
from agents.distillation.experimental.kegnet import Bar
from agents.distillation.objective import TERMS, LossConfig
from agents.distillation.records import (
    Constant,
    HeldOut,
    Score,
    StudentRecord,
    TeacherRecord,
    method_name,
    read_record,
    student_name,
    write_record,
)
from agents.distillation.sources import Sources, finished, rng_of
from agents.distillation.sources import Stopped as Stopped
from agents.distillation.students import (
    Student,
    multiply_adds,
    num_parameters,
    save_student,
    student_of,
)
from agents.distillation.teachers import (
    Examination,
    best_constant,
    constant_play,
    describe_teacher,
    kept_score,
)
from agents.distillation.temperature import Temperature, temperature_of
from agents.distillation.trainer import (
    PROGRESS,
    Course,
    Lesson,
    TeachingConfig,
    Training,
    drawing,
    examined,
)
from agents.networks import QNetwork
from agents.trained import Outputs, TrainedAgent, load_agent
from ebu.evaluation import Act
from ebu.interfaces import VectorEnvironment
from ebu.run.directory import CONFIG

STUDENTS, SCOUTS = (int.from_bytes(name) for name in (b"stud", b"scou"))
"""Streams of random numbers, far from each other's and from those of runs and evaluations."""


class Pupil(NamedTuple):
    """A student to be taught: its name, the weights of its losses, main one first, its seed.

    `procedure` sets those apart whom another procedure teaches by the same losses: a part of the
    method's name, and of what their random numbers come from.
    """

    student: str
    weights: Mapping[str, float]
    seed: int
    procedure: str = ""

    @property
    def method(self) -> str:
        losses = method_name(self.weights)
        return f"{losses}-{self.procedure}" if self.procedure else losses

    @property
    def name(self) -> str:
        return student_name(self.student, self.method, self.seed)

    def rng(self, stream: int) -> np.random.Generator:
        """Of the student's weights, of its minibatches, in that order."""
        return rng_of(self.seed, stream, *self.procedure.encode())


class Baselines(NamedTuple):
    """The games of the teacher, of random play, of the best constant action."""

    teacher: Score
    random: Score
    constant: Constant


def outputs_for(weights: Mapping[str, float], asked: Outputs | None) -> Outputs:
    """The outputs of a student with these losses: what the main one needs, or what is asked."""
    return TERMS[next(iter(weights))].outputs or asked or "logits"


@dataclass(frozen=True)
class Offline:
    """A teacher, and all that its students are made with.

    | field | meaning |
    | --- | --- |
    | out | directory of everything that is written |
    | teacher, teacher_dir | the agent, on the device that computes, and its run directory |
    | examination | how all are scored |
    | make_games | so many new environments to collect states in, from a seed |
    | life_loss_ends_value | see `collect` |
    | teaching, loss | how students are trained |
    | temperature | setting of τ, see `temperature_of` |
    | outputs | of students whose losses suit both kinds; None: a policy's logits |
    | seed | of the states |
    | precision, checkpoint_minutes | see `Training` |
    | should_stop | asked all the time; once it says yes, everything raises `Stopped` |
    | bar, say | where progress and single lines are shown |
    """

    out: Path
    teacher: TrainedAgent
    teacher_dir: Path
    examination: Examination
    make_games: Callable[[int, int], VectorEnvironment]
    life_loss_ends_value: bool
    teaching: TeachingConfig
    loss: LossConfig
    temperature: str
    outputs: Outputs | None
    seed: int
    precision: str
    checkpoint_minutes: float
    should_stop: Callable[[], bool]
    bar: Bar
    say: Callable[[str], None]

    # --- scores -----------------------------------------------------------------------------

    def score(self, what: str, act: Act, epsilon: float | None = None) -> Score:
        """Play the examination's games."""
        with self.bar(f"{what}: games", self.examination.evaluator.episodes, "games") as progress:
            return finished(
                self.examination.score(
                    act, epsilon=epsilon, should_stop=self.should_stop, progress=progress
                )
            )

    def baselines(self, random_play: Act) -> Baselines:
        """Score the teacher, random play and every constant action, or find their scores."""

        def scored(name: str, act: Act, epsilon: float | None = None) -> Score:
            path = self.out / "scores" / f"{name}.json"
            games = self.examination.evaluator.episodes
            return kept_score(path, games, lambda: self.score(name, act, epsilon))

        num_actions = self.teacher.num_actions
        return Baselines(
            scored("teacher", self.teacher.choose),
            scored("random", random_play, 1.0),
            best_constant(
                [
                    scored(f"constant-{action}", constant_play(action, num_actions))
                    for action in range(num_actions)
                ]
            ),
        )

    # --- states -----------------------------------------------------------------------------

    def gather(self, source: str, count: int, rounds: int, num_envs: int, scout: Pupil) -> StateSet:
        """States from one of `SOURCES` or a directory.

        In play the scout plays from the second round on: taught on all rounds before it, with
        1 / rounds of the updates. Scouts are no students: they start anew every time.
        """
        sources = Sources(
            directory=self.out / "states",
            teacher=self.teacher,
            teacher_dir=self.teacher_dir,
            seed=self.seed,
            make_games=self.make_games,
            num_envs=num_envs,
            random_start_actions=self.examination.evaluator.random_start_actions,
            life_loss_ends_value=self.life_loss_ends_value,
            should_stop=self.should_stop,
            bar=self.bar,
            say=self.say,
        )
        actor = functools.partial(self._actor, scout)
        return sources.states(source, count, rounds, actor, scout.student)

    def _actor(self, scout: Pupil, number: int, before: Sequence[StateSet], rounds: int) -> Act:
        directory = self.out / "scouts" / f"round-{number}"
        if not os.path.exists(directory / CONFIG):
            updates = max(1, self.teaching.updates // rounds)
            lesson = self.lesson(join(before), scout.weights)
            teaching = replace(self.teaching, updates=updates)
            rng = rng_of(scout.seed, SCOUTS, number)
            with self._taught(directory, scout, lesson, teaching, rng) as training:
                self._save(directory, scout, training.student, lesson, updates)
        shutil.rmtree(directory / PROGRESS, ignore_errors=True)
        return load_agent(directory, device=self.teacher.device).choose

    # --- students ---------------------------------------------------------------------------

    def lesson(self, states: StateSet, weights: Mapping[str, float]) -> Lesson:
        """What students are taught on these states by these losses."""
        states = states.to(self.teacher.device)
        targets = None
        if outputs_for(weights, self.outputs) == "values":
            settings = self.teacher.config["settings"]
            targets = hard_targets(
                states,
                gamma=settings.get("gamma", 0.99),
                # One-step targets for a teacher that had no other.
                beta=settings.get("beta", 0.0),
                clip_rewards=settings.get("clip_rewards", True),
            )
        temperature = self._temperature(states).value
        return Lesson(self.teacher, states, weights, self.loss, temperature, targets)

    def _temperature(self, states: StateSet) -> Temperature:
        taught = states.outputs[states.train]
        return temperature_of(self.temperature, taught, kind=self.teacher.outputs)

    def teach(
        self, pupil: Pupil, lesson: Lesson, *, judged_by: Lesson | None = None
    ) -> StudentRecord:
        """Teach and score a student, or find its record.

        Its held-out numbers are on the lesson, or on `judged_by`.
        """
        record = self.record(pupil)
        if record is None:
            directory, rng = self.directory(pupil), pupil.rng(STUDENTS)
            with self._taught(directory, pupil, lesson, self.teaching, rng) as training:
                record = self.conclude(pupil, training.student, lesson, training, judged_by)
                training.log_score(record["evaluation"]["mean"])
        # A training that has its record needs no checkpoint.
        shutil.rmtree(self.directory(pupil) / PROGRESS, ignore_errors=True)
        return record

    def directory(self, pupil: Pupil) -> Path:
        """Where a student lives."""
        return self.out / "students" / pupil.name

    def record(self, pupil: Pupil) -> StudentRecord | None:
        """A student's record, scored again where more games are asked for than it played.

        None until it is taught and scored.
        """
        path = self.directory(pupil) / "result.json"
        record = read_record(path, StudentRecord)
        if (
            record is not None
            and record["evaluation"]["games"] != self.examination.evaluator.episodes
        ):
            agent = load_agent(self.directory(pupil), device=self.teacher.device)
            record["evaluation"] = self.score(pupil.name, agent.choose)
            write_record(path, record)
        return record

    def conclude(
        self,
        pupil: Pupil,
        student: Student,
        lesson: Lesson,
        course: Course,
        judged_by: Lesson | None = None,
    ) -> StudentRecord:
        """Save and score a student whose course is finished; its record, written beside it."""
        directory = self.directory(pupil)
        self._save(directory, pupil, student, lesson, course.updates)
        agent = load_agent(directory, device=self.teacher.device)
        states = lesson.states
        record: StudentRecord = {
            "student": pupil.student,
            "network": student.name,
            "method": pupil.method,
            "seed": pupil.seed,
            "outputs": student.outputs,
            "parameters": num_parameters(student),
            "multiply_adds": multiply_adds(
                student, stack=states.stack, frame_shape=tuple(states.frames.shape[1:])
            ),
            "updates": course.updates,
            "states": len(lesson.train),
            "seconds": course.seconds,
            "held_out": examined(student, judged_by or lesson),
            "evaluation": self.score(pupil.name, agent.choose),
        }
        write_record(directory / "result.json", record)
        return record

    def new_student(self, pupil: Pupil, temperature: float, rng: np.random.Generator) -> Student:
        """A student before its first update; see `student_of`."""
        return student_of(
            self.teacher,
            pupil.student,
            outputs=outputs_for(pupil.weights, self.outputs),
            temperature=temperature,
            generator=drawing(rng),
        ).to(self.teacher.device)

    @property
    def training_options(self) -> dict[str, Any]:
        """Arguments of a `Course` that change nothing in what is taught."""
        return {"precision": self.precision, "checkpoint_minutes": self.checkpoint_minutes}

    def finish(self, course: Course) -> None:
        """Run a course to its end, in sight. Raises `Stopped` where told to stop."""
        name = course.directory.name
        for line in course.warnings:
            self.say(f"warning: {name}: {line}")
        with self.bar(f"{name}: updates", course.config.updates, "updates") as progress:
            progress(course.updates)
            if not course.run(should_stop=self.should_stop, progress=progress):
                raise Stopped

    @contextlib.contextmanager
    def _taught(
        self,
        directory: Path,
        pupil: Pupil,
        lesson: Lesson,
        teaching: TeachingConfig,
        rng: np.random.Generator,
    ) -> Iterator[Training]:
        """The training of a student once it is finished."""
        student = self.new_student(pupil, lesson.temperature, rng)
        training = Training(directory, student, lesson, teaching, rng=rng, **self.training_options)
        with contextlib.closing(training):
            self.finish(training)
            yield training

    def _save(
        self, directory: Path, pupil: Pupil, student: Student, lesson: Lesson, updates: int
    ) -> None:
        save_student(
            directory,
            student,
            teacher=self.teacher,
            teacher_dir=self.teacher_dir,
            seed=pupil.seed,
            settings={
                "student": pupil.student,
                "losses": dict(pupil.weights),
                "temperature": lesson.temperature,
                "states": len(lesson.train),
                "updates": updates,
            },
        )

    def describe_teacher(
        self, states: StateSet, baselines: Baselines, rounds: int
    ) -> TeacherRecord:
        """The teacher's record, written to teacher.json."""
        record = describe_teacher(
            self.teacher,
            self.teacher_dir,
            states,
            self._temperature(states),
            temperature_setting=self.temperature,
            rounds=rounds,
            evaluation=baselines.teacher,
            random=baselines.random,
            constant=baselines.constant,
        )
        write_record(self.out / "teacher.json", record)
        return record


class _AsPolicy(Student):
    """Action values divided by the teacher's temperature: logits, as the teacher's are."""

    def __init__(self, network: QNetwork, temperature: float) -> None:
        super().__init__("", network, "logits")
        self._temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) / self._temperature


def examined_as_policy(agent: TrainedAgent, lesson: Lesson) -> HeldOut:
    """An agent of action values on a lesson's held-out states: its loss is that of its policy."""
    student = _AsPolicy(agent.network, lesson.temperature)
    return examined(student, replace(lesson, weights={"kl": 1.0}))
