"""Students that teach the next ones: born-again networks, self-distillation, label refinery."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
from torch import Tensor

from agents.distillation.experimental.synthetic import shifted
from agents.distillation.pipeline import Offline, Pupil
from agents.distillation.records import StudentRecord, chosen
from agents.distillation.trainer import Lesson
from agents.trained import TrainedAgent, load_agent

REFINED = "refined"
"""The procedure's name of pupils whose labels are refined."""


class RefinedLesson(Lesson):
    """Label refinery: a state is shown shifted, with the teacher's outputs for what is shown.

    Bagherinezhad et al. 2018, "Label Refinery": the label of a whole image may be wrong for a crop
    of it. Here an image is moved by up to `synthetic.SHIFT` pixels. Held-out states stay as they
    are.
    """

    def shown(self, indices: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        stacks = shifted(self.states.stacks(indices), rng)
        return stacks, self.teacher.outputs_of(stacks)


def refined(lesson: Lesson) -> RefinedLesson:
    """The same lesson with refined labels."""
    return RefinedLesson(**{part.name: getattr(lesson, part.name) for part in fields(lesson)})


def of_generation(name: str, generation: int) -> str:
    """What a method, or a procedure, is called in a generation; it is the first one's name."""
    return name if generation == 1 else f"{name}-gen{generation}".removeprefix("-")


def teach_generations(
    procedure: Offline, pupils: Sequence[Pupil], first: Lesson, generations: int
) -> Iterator[StudentRecord]:
    """Teach and score a student of several seeds, then those whom the chosen one teaches, …

    Furlanello et al. 2018, "Born Again Neural Networks". Every generation starts from new weights.
    The later ones learn their teacher's policy as it is, at temperature 1; students of values are
    softened anew. All held-out numbers, by which students are chosen too, are on the first
    teacher's outputs, so that they compare over generations.

    `first` is the lesson of the first generation, by the procedure's own teacher.
    """
    lesson, teacher_dir = first, procedure.teacher_dir
    for generation in range(1, generations + 1):
        taught = [
            pupil._replace(procedure=of_generation(pupil.procedure, generation)) for pupil in pupils
        ]
        by_teacher = replace(procedure, teacher_dir=teacher_dir)
        records = []
        for pupil in taught:
            records.append(by_teacher.teach(pupil, lesson, judged_by=first))
            yield records[-1]
        if generation < generations:
            best = chosen(records)["seed"]
            teacher_dir = procedure.directory(next(p for p in taught if p.seed == best))
            student = load_agent(teacher_dir, device=first.states.device)
            lesson = taught_by(procedure, first, student)


def taught_by(procedure: Offline, first: Lesson, student: TrainedAgent) -> Lesson:
    """The first lesson with a student as the teacher: of the same kind, states and losses."""
    teacher = TrainedAgent(
        student.network,
        student.outputs,
        # Whose discount targets of values are made with: a student's own configuration has none.
        procedure.teacher.config,
        student.frames,
        student.device,
        student.warnings,
    )
    temperature = "auto" if student.outputs == "logits" else procedure.temperature
    by_student = replace(procedure, teacher=teacher, temperature=temperature)
    lesson = by_student.lesson(first.states.relabelled(student.outputs_of), first.weights)
    return refined(lesson) if isinstance(first, RefinedLesson) else lesson
