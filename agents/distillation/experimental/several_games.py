"""Several games in one network: a shared trunk and a head for each (Rusu et al. 2015, section 3.3).

The last linear layer is the head. The trunk with one of its heads is an ordinary network: each
game's student is saved, scored and exported as any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.architectures import TEACHER
from agents.distillation.dataset import Dataset
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import StudentRecord
from agents.distillation.settings import DistillConfig, StudentSpec, refuse_factorised
from agents.distillation.students import Student
from agents.distillation.trainer import StudentTrainer, Supervision
from agents.distillation.training import Member, rng_of_student, train_together
from agents.networks import PlainHead, QNetwork
from agents.trained import TrainedAgent
from ebu.errors import UsageError

JOINT = "joint"
"""The procedure's name of students that play several games."""


class JointTrainer(StudentTrainer):
    """Trains students of G games with one trunk.

    Every update takes a minibatch of one game, in turn: outputs of different games are never in one
    loss, and the other games' heads stay as they are, Adam's averages included.
    """

    def __init__(
        self,
        directory: Path,
        students: Sequence[Student],
        supervisions: Sequence[Supervision],
        config: DistillConfig,
        **options: Any,
    ) -> None:
        share_trunk([student.network for student in students])
        super().__init__(directory, students, supervisions, config, **options)


def share_trunk(networks: Sequence[QNetwork]) -> None:
    """Give all networks, of one architecture, the layers of the first except their last ones."""
    first, *others = networks
    for network in others:
        for own, shared in zip(_plain_heads(network), _plain_heads(first), strict=True):
            own[0] = shared[0]
        network[0] = first[0]


def _plain_heads(network: QNetwork) -> list[PlainHead]:
    return [module for module in network.modules() if isinstance(module, PlainHead)]


def check(config: DistillConfig, teachers: Mapping[str, TrainedAgent]) -> None:
    """Raise `UsageError` unless one network can be distilled from all these teachers, by game."""
    flags = {
        "--generations": config.generations > 1,
        "--refine-labels": config.refine_labels,
        "--mutual": config.mutual,
        "--from-scratch": config.from_scratch > 0,
    }
    for flag, given in flags.items():
        if given:
            raise UsageError(
                f"{flag} is for one game, and the runs are of {' and '.join(teachers)}: leave it "
                "out, or distil each game separately"
            )
    refuse_factorised("several games", config.students)
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
        if TEACHER in config.students and ours != theirs:
            raise UsageError(
                f"--students {TEACHER}: the teacher of {first} is {ours}, that of {other} "
                f"{theirs}: name the network of the students"
            )


def train(
    pipelines: Mapping[str, Pipeline],
    specs: Sequence[StudentSpec],
    datasets: Mapping[str, Dataset],
    out: Path,
) -> Iterator[tuple[str, StudentRecord]]:
    """Train a network on all games for each spec and score it in each, or load the records.

    A network gets as many minibatches of each game as a student of one game, so G times the
    updates. Its trainer's directory is in `out`, its students are in the directories of the games.
    """
    for each in specs:
        spec = each._replace(procedure=JOINT)
        members = [
            Member(pipeline, spec, pipeline.supervise(datasets[game], spec.weights))
            for game, pipeline in pipelines.items()
        ]
        records = train_together(
            out / JOINT / spec.name,
            members,
            trainer_type=JointTrainer,
            rngs=[rng_of_student(spec)] * len(members),
            updates=len(members) * members[0].pipeline.config.updates,
            names=list(pipelines),
        )
        yield from zip(pipelines, records, strict=True)
