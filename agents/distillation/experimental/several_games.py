"""Several games in one network: a trunk for all, a head for each (Rusu et al. 2015, section 3.3).

The last linear layer is the head; all before it is shared. A trunk with one of its heads is an
ordinary network: each game's student is saved, scored and exported as any other.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from agents.distillation.pipeline import STUDENTS, Offline, Pupil
from agents.distillation.records import StudentRecord
from agents.distillation.students import TEACHER, Student
from agents.distillation.trainer import PROGRESS, Course, Lesson, TeachingConfig
from agents.networks import PlainHead, QNetwork
from agents.trained import TrainedAgent
from ebu.errors import UsageError

JOINT = "joint"
"""The procedure's name of pupils that play several games."""


class JointTraining(Course):
    """Students of G games with one trunk in training; see `Course`.

    Every update takes the minibatch of one game, game after game: outputs of different games are
    never in one loss, and the other games' heads stay as they are, averages of Adam included.
    """

    def __init__(
        self,
        directory: Path,
        students: Sequence[Student],
        lessons: Sequence[Lesson],
        config: TeachingConfig,
        *,
        rng: np.random.Generator,
        **options: Any,
    ) -> None:
        share_trunk([student.network for student in students])
        super().__init__(directory, students, lessons, config, rng=rng, **options)

    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        game = self.updates % len(self.pairs)
        lesson = self.pairs[game][1]
        indices = self._drawn(lesson)
        minibatch = self._minibatch(game, indices, lesson.shown(indices, self._rng))
        losses: tuple[Tensor, dict[str, Tensor]] = self._objectives[game](minibatch)
        return losses


def share_trunk(networks: Sequence[QNetwork]) -> None:
    """Give all networks, of one architecture, the layers of the first but for their last ones."""
    first, *others = networks
    for network in others:
        for own, shared in zip(_plain_heads(network), _plain_heads(first), strict=True):
            own[0] = shared[0]
        network[0] = first[0]


def _plain_heads(network: QNetwork) -> list[PlainHead]:
    return [module for module in network.modules() if isinstance(module, PlainHead)]


def check_games(teachers: Mapping[str, TrainedAgent], students: Sequence[str]) -> None:
    """Raise `UsageError` unless a network can see the games of all these teachers.

    `students` are names of networks; `teacher` is one if all teachers' networks are alike.
    """
    first, *others = teachers
    own = teachers[first].config
    for other in others:
        its = teachers[other].config
        for key in ("stack", "frame_shape", "frame_dtype"):
            ours, theirs = own["environment"][key], its["environment"][key]
            if ours != theirs:
                raise UsageError(
                    f"{key} of {first} is {ours}, of {other} {theirs}: one network sees only games "
                    "of the same frames"
                )
        ours, theirs = own["settings"]["network"], its["settings"]["network"]
        if TEACHER in students and ours != theirs:
            raise UsageError(
                f"--students {TEACHER}: the teacher of {first} is {ours}, that of {other} "
                f"{theirs}: name the network of the students"
            )


def teach_jointly(
    out: Path, procedures: Mapping[str, Offline], lessons: Mapping[str, Lesson], pupil: Pupil
) -> dict[str, StudentRecord]:
    """Teach one network all games, score it in each, or find its records, by game.

    It takes as many minibatches of each game as a student of one game, so G times the updates. Its
    training lies in `out`, each game's student in the directory of that game's procedure. Records
    give the time and the updates of all games together.

    Raises `Stopped` where told to stop.
    """
    pupil = pupil._replace(procedure=JOINT)
    directory = out / JOINT / pupil.name
    records = {game: procedure.record(pupil) for game, procedure in procedures.items()}
    first, *_ = procedures.values()
    if None in records.values():
        rng = pupil.rng(STUDENTS)
        students = {
            game: procedure.new_student(pupil, lessons[game].temperature, rng)
            for game, procedure in procedures.items()
        }
        teaching = replace(first.teaching, updates=len(procedures) * first.teaching.updates)
        course = JointTraining(
            directory,
            list(students.values()),
            [lessons[game] for game in procedures],
            teaching,
            rng=rng,
            **first.training_options,
        )
        with contextlib.closing(course):
            first.finish(course)
            for game, procedure in procedures.items():
                # Scored one by one: a game that has a record was played before a stop.
                record = records[game] or procedure.conclude(
                    pupil, students[game], lessons[game], course
                )
                course.log_score(record["evaluation"]["mean"], game)
                records[game] = record
    # A training that has its records needs no checkpoint.
    shutil.rmtree(directory / PROGRESS, ignore_errors=True)
    return {game: record for game, record in records.items() if record is not None}
