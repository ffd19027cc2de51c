"""What a distillation measures, as JSON files: each written whole or not at all."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar, cast

from ebu.errors import EbuError
from ebu.run.files import as_json, write_whole
from ebu.run.reading import read_json

TEACHER_FILE, ENSEMBLE_FILE, RESULT_FILE = "teacher.json", "ensemble.json", "result.json"
REPORT = "report.md"
STUDENTS, EXPORT = "students", "export"
"""Folders of the output directory."""
HARD, SCRATCH = "hard", "from-scratch"
"""Methods that others are compared with: hard labels, and training without a teacher."""


class GameScores(TypedDict):
    """The games of a score. Scores are comparable where all but the returns are equal.

    | key | meaning |
    | --- | --- |
    | mean, games, returns | raw scores |
    | interval_95 | [low, high] of the mean by Student's t; None for a single game |
    | human_normalised | None where the protocol's table has no human score |
    | epsilon, protocol, seed | how they were played |
    | frames_played | emulator frames in all games |
    """

    mean: float
    games: int
    interval_95: list[float] | None
    returns: list[float]
    human_normalised: float | None
    epsilon: float
    protocol: str
    seed: int
    frames_played: int


class SavedScore(GameScores):
    """A score in a file of its own; weights: digest of those that played, if any did."""

    weights: NotRequired[str]


class Constant(TypedDict):
    """The best constant action, its games, and the mean score of every action."""

    action: int
    evaluation: GameScores
    means: list[float]


class StateCounts(TypedDict):
    """States to train on and held out, their rounds, and their source: a name or a directory."""

    train: int
    held_out: int
    rounds: int
    source: str


class Sizes(TypedDict):
    """A network's parameters, and its multiply-adds for a state."""

    parameters: int
    multiply_adds: int


class TeacherRecord(TypedDict):
    """The teacher, its reference scores, and its temperature.

    | key | meaning |
    | --- | --- |
    | frames | emulator frames it was trained on |
    | frames, parameters, multiply_adds | None where a policy from elsewhere does not tell them |
    | evaluation, random, constant | games of teacher, random play and constant actions |
    | gap | median of the best minus the second-best output over the states, in their units |
    | temperature | τ, in the same units; `temperature_setting` is what was asked for |
    | entropy | of softmax(outputs / τ), the mean over the states, in nats |
    | weights | digest of those that were measured; earlier versions have none |
    """

    run_dir: str
    game: str
    protocol: str
    network: str
    frames: int | None
    num_actions: int
    parameters: int | None
    multiply_adds: int | None
    evaluation: GameScores
    random: GameScores
    constant: Constant
    gap: float
    temperature: float
    temperature_setting: str
    entropy: float
    states: StateCounts
    weights: NotRequired[str]


class MemberRecord(TypedDict):
    """A member of an ensemble: its name, its frames (None: unknown), its τ, its median gap."""

    member: str
    frames: int | None
    temperature: float
    gap: float


class EnsembleRecord(TypedDict):
    """The content of ensemble.json."""

    members: list[MemberRecord]


class HeldOut(TypedDict):
    """A student on held-out states.

    | key | meaning |
    | --- | --- |
    | loss | the main loss |
    | agreement | share of the states in which it chooses the teacher's action |
    | regret | mean of max_a T(s, a) − T(s, a_S), in units of the teacher's outputs T |
    | states | number of states |
    """

    loss: float
    agreement: float
    regret: float
    states: int


class StudentRecord(TypedDict):
    """One student of one seed.

    | key | meaning |
    | --- | --- |
    | student, network | the name that was asked for, and the one that rebuilds the network |
    | method | the losses it was trained by, see `method_name`, and the procedure |
    | states | number of states it was trained on |
    | seconds | wall time of its training: the only number that differs between runs |
    | weights | digest of those that were measured; earlier versions have none |
    """

    student: str
    network: str
    method: str
    seed: int
    outputs: str
    parameters: int
    multiply_adds: int
    updates: int
    states: int
    seconds: float
    held_out: HeldOut
    evaluation: GameScores
    weights: NotRequired[str]


RecordT = TypeVar("RecordT")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all. Raises `EbuError` where the disk is full or fails."""
    write_whole(path, as_json(record))


def read_record(path: Path, kind: type[RecordT]) -> RecordT | None:
    """A record that `write_record` wrote; None where there is none.

    Raises `EbuError`, one line, for a file that is no record of this kind.
    """
    try:
        record = read_json(path, kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EbuError(
            f"{path} cannot be read ({error}): put back a copy, or delete it to have it measured "
            "again"
        ) from error
    return cast(RecordT, record)


def method_name(weights: Mapping[str, float]) -> str:
    """The losses of a student as a label: the main one, and others with their weights."""
    main, *added = (name for name, weight in weights.items() if weight)
    return "+".join([main, *(f"{name}{weights[name]:g}" for name in added)])


def file_name(name: str) -> str:
    """A student's name as part of a file's: `/`, `@`, `=` and `,` become `_`."""
    return re.sub(r"[/@=,]", "_", name)


def export_name(student: str, method: str) -> str:
    """The name of an exported student; "teacher" is the teacher's."""
    return f"{file_name(student)}-{method}"


def student_name(student: str, method: str, seed: int) -> str:
    """The name of a student's directory."""
    return f"{export_name(student, method)}-seed{seed}"


def student_directory(run_dir: Path, name: str) -> Path:
    """The directory of a run's online student of this name, itself a run directory."""
    return run_dir / STUDENTS / file_name(name)


def chosen(records: Sequence[StudentRecord]) -> StudentRecord:
    """Of one student's seeds the one with the lowest held-out loss.

    Choosing by the score would count luck as skill.
    """
    return min(records, key=lambda record: record["held_out"]["loss"])


def retention(student: GameScores, teacher: TeacherRecord) -> float | None:
    """(S − random) / (T − random) of mean scores; None where the teacher is no better than random.

    The raw ratio S / T means nothing where scores are negative or random play scores.
    """
    random = teacher["random"]["mean"]
    gain = teacher["evaluation"]["mean"] - random
    return (student["mean"] - random) / gain if gain > 0 else None
