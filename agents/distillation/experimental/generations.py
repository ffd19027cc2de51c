"""Students as teachers of the next ones: born-again networks, self-distillation, label refinery."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from agents.distillation.experimental.synthetic import shift
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import StudentRecord, chosen
from agents.distillation.settings import AUTO, StudentSpec, of_generation
from agents.distillation.students import load_student
from agents.distillation.trainer import Supervision
from agents.distillation.training import train_student
from agents.trained import TrainedAgent


class RefinedSupervision(Supervision):
    """Label refinery: shifted states, with the teacher's outputs for what is shown.

    Bagherinezhad et al. 2018, "Label Refinery": the label of a whole image may be wrong for a crop
    of it. Here an image is moved by up to `synthetic.SHIFT` pixels. Held-out states are not.
    With `unshifted_labels` the outputs are those for the state before the shift: augmentation.
    """

    def show(self, indices: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        stacks = shift(self.dataset.stacks(indices), rng)
        if self.config.unshifted_labels:
            return stacks, self.dataset.outputs[indices]
        return stacks, self.teacher.outputs_of(stacks)


def refine(supervision: Supervision) -> RefinedSupervision:
    """The same supervision with refined labels."""
    return RefinedSupervision(**vars(supervision))


def supervise_by(student: TrainedAgent, pipeline: Pipeline, first: Supervision) -> Supervision:
    """The supervision by a student on the states and with the losses of the first one.

    A student's policy is taken as it is, at temperature 1; its values are softened as the
    teacher's are.
    """
    # Targets of values are made with the teacher's discount: a student's own settings have none.
    teacher = copy.copy(student)
    teacher.config = pipeline.teacher.config
    temperature = AUTO if student.outputs == "logits" else pipeline.config.temperature
    config = replace(pipeline.config, temperature=temperature)
    dataset = first.dataset.relabelled(student.outputs_of)
    return replace(pipeline, teacher=teacher, config=config).supervise(dataset, first.weights)


def train(
    pipeline: Pipeline, specs: Sequence[StudentSpec], first: Supervision
) -> Iterator[StudentRecord]:
    """Train and score students of the first teacher, then of the chosen student, and so on.

    Furlanello et al. 2018, "Born Again Neural Networks". Every generation starts from new weights.
    All held-out numbers, by which students are chosen, are on the first teacher's outputs, so that
    they compare over generations.
    """
    named: list[StudentSpec] = []
    records: list[StudentRecord] = []
    for name in dict.fromkeys(spec.student for spec in specs):
        of_name = [spec for spec in specs if spec.student == name]
        supervision, teacher_dir = first, pipeline.teacher_dir
        for generation in range(1, pipeline.config.generations + 1):
            if generation > 1:
                best = chosen(records)["seed"]
                teacher_dir = pipeline.directory(next(s for s in named if s.seed == best))
                student = load_student(teacher_dir, first.dataset.device)
                supervision = supervise_by(student, pipeline, first)
                if isinstance(first, RefinedSupervision):
                    supervision = refine(supervision)
            named = [s._replace(procedure=of_generation(s.procedure, generation)) for s in of_name]
            by_teacher = replace(pipeline, teacher_dir=teacher_dir)
            records = []
            for spec in named:
                records.append(train_student(by_teacher, spec, supervision, judge=first))
                yield records[-1]
