"""Train students by the main method and others, score each, and load those that are finished."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents.distillation.dataset import Dataset
from agents.distillation.pipeline import Pipeline, rng_of
from agents.distillation.records import (
    RESULT_FILE,
    StudentRecord,
    read_record,
    write_record,
)
from agents.distillation.settings import StudentSpec, load_experimental
from agents.distillation.students import Student, digest_of, load_student, network_sizes
from agents.distillation.trainer import PROGRESS, StudentTrainer, Supervision

STUDENT_STREAM = int.from_bytes(b"stud")


def rng_of_student(spec: StudentSpec) -> np.random.Generator:
    """The random numbers of a student's weights, then of its minibatches."""
    return rng_of(spec.seed, STUDENT_STREAM, *spec.procedure.encode())


def train_students(
    pipelines: Mapping[str, Pipeline],
    specs: Sequence[StudentSpec],
    datasets: Mapping[str, Dataset],
    out: Path,
) -> Iterator[tuple[str, StudentRecord]]:
    """Train and score all students, or load their records: each with its game.

    | argument | meaning |
    | --- | --- |
    | pipelines, datasets | by their games |
    | specs | ordered by method, the main one first, then by student |
    | out | directory of the whole distillation |
    """
    if len(pipelines) > 1:
        yield from load_experimental("several games").train(pipelines, specs, datasets, out)
        return
    ((game, pipeline),) = pipelines.items()
    main = [spec for spec in specs if spec.method == specs[0].method]
    supervision = pipeline.supervise(datasets[game], main[0].weights)
    config = pipeline.config
    if config.refine_labels:
        supervision = load_experimental("generations").refine(supervision)
    if config.mutual or config.generations > 1:
        procedure = load_experimental("mutual" if config.mutual else "generations")
        for record in procedure.train(pipeline, main, supervision):
            yield game, record
    else:
        for spec in main:
            yield game, train_student(pipeline, spec, supervision)
    for spec in specs[len(main) :]:
        supervision = pipeline.supervise(datasets[game], spec.weights)
        yield game, train_student(pipeline, spec, supervision)


class Member(NamedTuple):
    """One of the students that are trained together: whose pipeline, which student, on what."""

    pipeline: Pipeline
    spec: StudentSpec
    supervision: Supervision


def train_student(
    pipeline: Pipeline,
    spec: StudentSpec,
    supervision: Supervision,
    *,
    judge: Supervision | None = None,
) -> StudentRecord:
    """Train and score one student, or load its record; see `train_together`."""
    member = Member(pipeline, spec, supervision)
    (record,) = train_together(pipeline.directory(spec), [member], judge=judge)
    return record


def train_together(
    directory: Path,
    members: Sequence[Member],
    *,
    trainer_type: type[StudentTrainer] = StudentTrainer,
    rngs: Sequence[np.random.Generator] | None = None,
    updates: int | None = None,
    names: Sequence[str] = ("mean",),
    judge: Supervision | None = None,
) -> list[StudentRecord]:
    """Train students in one trainer and score each, or load their records.

    | argument | meaning |
    | --- | --- |
    | directory | of the trainer's checkpoint and logs |
    | rngs | of each student's weights, the first also of the minibatches; by default its own |
    | updates | of the trainer, if not those of the settings |
    | names | of the students in the logs |
    | judge | measures the students, if not their own supervision |

    Records have the time and updates of all students together. Raises `Stopped` if told to stop.
    """
    records = [_saved_record(member) for member in members]
    first = members[0].pipeline
    if None in records:
        rngs = rngs or [rng_of_student(member.spec) for member in members]
        students = [
            pipeline.new_student(spec, supervision.temperature, rng)
            for (pipeline, spec, supervision), rng in zip(members, rngs, strict=True)
        ]
        config = replace(first.config, updates=updates or first.config.updates)
        supervisions = [member.supervision for member in members]
        trainer = trainer_type(directory, students, supervisions, config, rng=rngs[0])
        with contextlib.closing(trainer):
            first.run(trainer)
            for k, (member, student) in enumerate(zip(members, students, strict=True)):
                # One that has a record was scored before a stop.
                record = records[k] or _finish(member, student, trainer, judge)
                trainer.log_score(record["evaluation"]["mean"], names[k])
                records[k] = record
    # Once all are scored the checkpoint is not needed.
    shutil.rmtree(directory / PROGRESS, ignore_errors=True)
    return [record for record in records if record is not None]


def _saved_record(member: Member) -> StudentRecord | None:
    """A student's record, None until it is trained and scored.

    The student is scored again if its score has another number of games.
    """
    pipeline, spec, _ = member
    path = pipeline.directory(spec) / RESULT_FILE
    record = read_record(path, StudentRecord)
    if record is None:
        return None
    # Also where it need not play: a lost file should not be noticed years later.
    agent = load_student(pipeline.directory(spec), pipeline.teacher.device)
    if record["evaluation"]["games"] != pipeline.games:
        record["evaluation"] = pipeline.score(spec.name, agent.choose)
        write_record(path, record)
    return record


def _finish(
    member: Member, student: Student, trainer: StudentTrainer, judge: Supervision | None
) -> StudentRecord:
    """Save and score a trained student, and write its record."""
    pipeline, spec, supervision = member
    directory = pipeline.directory(spec)
    pipeline.save(directory, spec, student, supervision, trainer.updates)
    agent = load_student(directory, pipeline.teacher.device)
    record: StudentRecord = {
        "student": spec.student,
        "network": student.name,
        "method": spec.method,
        "seed": spec.seed,
        "outputs": student.outputs,
        **network_sizes(student, pipeline.teacher.config["environment"]),
        "updates": trainer.updates,
        "states": len(supervision.dataset.train),
        "seconds": trainer.seconds,
        "held_out": (judge or supervision).measure(student),
        "evaluation": pipeline.score(spec.name, agent.choose),
        "weights": digest_of(agent.network),
    }
    write_record(directory / RESULT_FILE, record)
    return record
