"""Mutual learning: students that learn side by side, from the teacher and from each other."""

import contextlib
import shutil
from collections.abc import Sequence

import torch
from torch import Tensor

from agents.distillation.pipeline import STUDENTS, Offline, Pupil
from agents.distillation.records import StudentRecord
from agents.distillation.trainer import PROGRESS, Course, Lesson

PEER = "peer"
"""The procedure's name of the second student where a single name learns beside its own kind."""


class MutualTraining(Course):
    """K students in training on the same minibatches; see `Course`.

    Each lowers the lesson's losses, of which `mutual` is the mean KL(p_k ‖ p_S) over its K − 1
    peers as they are before the update (Zhang et al. 2018, "Deep Mutual Learning"; there students
    take turns). No gradient flows into a peer: the sum of all their losses gives each its own.
    """

    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the students; each loss as the mean over them."""
        lesson = self.pairs[0][1]
        indices = self._drawn(lesson)
        shown = lesson.shown(indices, self._rng)
        minibatches = [self._minibatch(k, indices, shown) for k in range(len(self.pairs))]
        outputs = torch.stack([minibatch.student["outputs"] for minibatch in minibatches])
        totals, parts = [], []
        for k, objective in enumerate(self._objectives):
            peers = torch.cat([outputs[:k], outputs[k + 1 :]])
            total, losses = objective(minibatches[k]._replace(peers=peers))
            totals.append(total)
            parts.append(losses)
        means = {name: torch.stack([losses[name] for losses in parts]).mean() for name in parts[0]}
        return torch.stack(totals).sum(), means


def cohort(pupils: Sequence[Pupil]) -> list[Pupil]:
    """Who learns side by side: the students of one seed; a single one with a peer of its kind."""
    if len(pupils) > 1:
        return list(pupils)
    return [pupils[0], pupils[0]._replace(procedure=PEER)]


def alone(pupil: Pupil) -> Pupil:
    """The pupil without the loss that needs peers."""
    return pupil._replace(weights={n: w for n, w in pupil.weights.items() if n != "mutual"})


def teach_mutually(
    procedure: Offline, pupils: Sequence[Pupil], lesson: Lesson
) -> list[StudentRecord]:
    """Teach and score a cohort of one seed, or find its records, in which the time is that of all.

    Raises `Stopped` where told to stop.
    """
    directory = procedure.out / "mutual" / f"{pupils[0].method}-seed{pupils[0].seed}"
    records = [procedure.record(pupil) for pupil in pupils]
    if None in records:
        rngs = [pupil.rng(STUDENTS) for pupil in pupils]
        students = [
            procedure.new_student(pupil, lesson.temperature, rng)
            for pupil, rng in zip(pupils, rngs, strict=True)
        ]
        course = MutualTraining(
            directory,
            students,
            [lesson] * len(students),
            procedure.teaching,
            rng=rngs[0],
            **procedure.training_options,
        )
        with contextlib.closing(course):
            procedure.finish(course)
            for k, pupil in enumerate(pupils):
                # Scored one by one: whoever has a record was scored before a stop.
                record = records[k] or procedure.conclude(pupil, students[k], lesson, course)
                course.log_score(record["evaluation"]["mean"], pupil.name)
                records[k] = record
    # A training that has its records needs no checkpoint.
    shutil.rmtree(directory / PROGRESS, ignore_errors=True)
    return [record for record in records if record is not None]
