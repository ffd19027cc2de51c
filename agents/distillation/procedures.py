"""Who teaches whom, beyond one teacher and students that learn alone."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.distillation.dataset import StateSet
from agents.distillation.experimental.generations import (
    REFINED,
    of_generation,
    refined,
    teach_generations,
)
from agents.distillation.experimental.mutual import cohort, teach_mutually
from agents.distillation.experimental.several_games import teach_jointly
from agents.distillation.objective import TERMS
from agents.distillation.pipeline import Offline, Pupil, outputs_for
from agents.distillation.records import StudentRecord
from agents.trained import Outputs
from ebu.errors import UsageError
from ebu.run.cli import at_most, positive


@dataclass(frozen=True)
class ProcedureConfig:
    """Who teaches whom. Several runs of one game teach as an ensemble, and students of the main
    method learn several games in one network, with a head for each."""

    generations: int = 1
    """Generations of students, each taught by the chosen student of its name of the one before:
    born-again networks, with --students teacher self-distillation. May grow."""
    refine_labels: bool = False
    """Label refinery: students see states shifted by up to 4 pixels, labelled as they are seen, by
    the teacher in the first generation and then by the last one."""
    mutual: bool = False
    """Students of a seed learn side by side, each also from the others; a single name learns beside
    a second student of that name."""
    all_learners: bool = False
    """All learners of an adaptive_ebu run teach as an ensemble, not the one that plays best."""

    def check(self, students: Sequence[str]) -> None:
        """Raise `UsageError`, one line, for procedures that do not go together."""
        positive({"--generations": self.generations})
        at_most({"--generations": (self.generations, 1_000)})
        if self.generations == 1:
            return
        if self.mutual:
            raise UsageError("--mutual and --generations are two procedures: leave one out")
        check_new("--generations", students)

    @property
    def name(self) -> str:
        """Of the main method's first generation, see `Pupil`."""
        return REFINED if self.refine_labels else ""

    @property
    def losses(self) -> dict[str, float]:
        """Losses by weight that the main method has beside its own."""
        return {"mutual": 1.0} if self.mutual else {}

    def result(self, method: str) -> str:
        """The method of the students that come of the main method in the end."""
        return of_generation(method, self.generations)


def check_new(procedure: str, students: Sequence[str]) -> None:
    """Raise `UsageError` for a student that starts from the weights of a teacher."""
    for name in students:
        if "@" in name:
            raise UsageError(
                f"--students {name} starts from the weights of one teacher, and with {procedure} "
                "students start anew: leave it out"
            )


def check_ensemble(
    students: Sequence[str], losses: Sequence[Mapping[str, float]], asked: Outputs | None
) -> None:
    """Raise `UsageError` for what an ensemble cannot teach: it has a policy and nothing else.

    losses: weights by name; asked: see `outputs_for`.
    """
    check_new("an ensemble", students)
    for name in sorted({name for weights in losses for name, weight in weights.items() if weight}):
        if TERMS[name].layers:
            raise UsageError(
                f"{name} compares layers with the teacher's, and an ensemble has outputs alone: "
                f"leave --{name.replace('_', '-')} out"
            )
    if "values" in {outputs_for(weights, asked) for weights in losses}:
        raise UsageError(
            "an ensemble is a policy, which has no values to teach: choose kl, hard or centred for "
            "--loss and --baselines, and no --outputs values"
        )


def check_single(config: ProcedureConfig, games: Sequence[str], students: Sequence[str]) -> None:
    """Raise `UsageError` for procedures that do not go with several games in one network."""
    flags = {
        "--generations": config.generations > 1,
        "--refine-labels": config.refine_labels,
        "--mutual": config.mutual,
    }
    for flag, given in flags.items():
        if given:
            raise UsageError(
                f"{flag} is for one game, and the runs are of {' and '.join(games)}: leave it out, "
                "or distil each game for itself"
            )
    check_new("several games", students)


def taught(
    config: ProcedureConfig,
    out: Path,
    procedures: Mapping[str, Offline],
    pupils: Sequence[Pupil],
    states: Mapping[str, StateSet],
) -> Iterator[tuple[str, StudentRecord]]:
    """Teach and score all pupils, or find their records: each with its game.

    | argument | meaning |
    | --- | --- |
    | out | where the network of several games is trained |
    | procedures, states | by their games |
    | pupils | ordered by method, the main one first, then by student |
    """
    if len(procedures) == 1:
        ((game, procedure),) = procedures.items()
        for record in _taught_alone(config, procedure, pupils, states[game]):
            yield game, record
        return
    for pupil in pupils:
        lessons = {
            game: procedure.lesson(states[game], pupil.weights)
            for game, procedure in procedures.items()
        }
        yield from teach_jointly(out, procedures, lessons, pupil).items()


def _taught_alone(
    config: ProcedureConfig, procedure: Offline, pupils: Sequence[Pupil], states: StateSet
) -> Iterator[StudentRecord]:
    main = [pupil for pupil in pupils if pupil.method == pupils[0].method]
    lesson = procedure.lesson(states, main[0].weights)
    if config.refine_labels:
        lesson = refined(lesson)
    if config.mutual:
        for seed in dict.fromkeys(pupil.seed for pupil in main):
            together = cohort([pupil for pupil in main if pupil.seed == seed])
            yield from teach_mutually(procedure, together, lesson)
    else:
        for _, group in itertools.groupby(main, lambda pupil: pupil.student):
            yield from teach_generations(procedure, list(group), lesson, config.generations)
    for pupil in pupils[len(main) :]:
        yield procedure.teach(pupil, procedure.lesson(states, pupil.weights))
