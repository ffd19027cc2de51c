"""Score retention: of a student, of a method, of another student; methods compared by pairs.

All policies of a distillation are scored in the same games, so everything is paired by games:
`ebu.paired`. Scores of other games are not compared at all.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from agents.distillation.records import GameScores, StudentRecord, TeacherRecord, chosen, retention
from ebu.paired import Difference, holm, paired_difference, share_interval
from ebu.statistics import CONFIDENCE, mean_interval


class MethodRow(TypedDict):
    """All seeds of one student and method: means over them, and intervals of the retention.

    | key | meaning |
    | --- | --- |
    | retention_95 | of the mean over students of all seeds, in all games; None with one seed |
    | another_95 | of another student of this method, in as many games; None with one seed |
    """

    name: str
    method: str
    seeds: list[int]
    chosen_seed: int
    score: float
    retention: float | None
    retention_95: list[float] | None
    another_95: list[float] | None
    held_out_loss: float
    agreement: float
    regret: float


class MethodDifference(TypedDict):
    """A method against the main one, of the same student: differences of scores, paired by games.

    | key | meaning |
    | --- | --- |
    | difference | mean score minus that of `main` |
    | together_95 | its interval: all comparisons of a report hold together with 95 % (Bonferroni) |
    | p_value | that there is no difference, adjusted for the number of comparisons (Holm) |
    """

    name: str
    method: str
    main: str
    difference: float
    together_95: list[float]
    p_value: float


def in_same_games(*scores: GameScores) -> bool:
    """Whether these policies have played the same games."""
    games = {(score["protocol"], score["seed"], len(score["returns"])) for score in scores}
    return len(games) == 1


def retention_interval(
    scores: Sequence[GameScores], teacher: TeacherRecord, *, another: bool = False
) -> list[float] | None:
    """The 95 % interval of a retention: a student's own over games, or that of a method.

    scores: of the method's students, one for each seed; `another`: of one more student. None where
    the games differ or are too few, and where the teacher cannot be told from random play.
    """
    ends = teacher["evaluation"], teacher["random"]
    if not in_same_games(*ends, *scores):
        return None
    returns = [np.array(score["returns"]) for score in ends]
    students = np.array([score["returns"] for score in scores])
    interval = share_interval(students, *returns, another=another)
    return None if interval is None else list(interval)


def is_above(score: GameScores, *floor: GameScores) -> bool | None:
    """Whether the mean is above all these with 95 % confidence, each paired by games.

    None for a single game, and for other games.
    """
    leads = [lead for other in floor if (lead := lead_over(score, other)) is not None]
    return all(low > 0 for low, _ in leads) if len(leads) == len(floor) else None


def lead_over(score: GameScores, other: GameScores) -> tuple[float, float] | None:
    """The 95 % interval of the mean difference of two scores, paired by games.

    None for a single game, and for other games.
    """
    if not in_same_games(score, other):
        return None
    return mean_interval(np.subtract(score["returns"], other["returns"]))


def floor_of(teacher: TeacherRecord) -> dict[str, GameScores]:
    """What is to be above: the games of random play and of the best constant action, by name."""
    constant = teacher["constant"]
    return {
        "random play": teacher["random"],
        f"always action {constant['action']}": constant["evaluation"],
    }


def weakness(teacher: TeacherRecord) -> str | None:
    """What makes a retention of this teacher's score mean little, in words; None: nothing does."""
    score = teacher["evaluation"]
    if score["interval_95"] is None:
        return "the teacher's score is of a single game and has no interval"
    for name, other in floor_of(teacher).items():
        lead = lead_over(score, other)
        if lead is not None and lead[0] <= 0:
            return (
                f"the teacher's score minus that of {name}, {lead[0]:,.2f} to {lead[1]:,.2f} in "
                "the same games, is not above 0"
            )
    return None


def method_row(group: Sequence[StudentRecord], teacher: TeacherRecord) -> MethodRow:
    """All seeds of one student and method."""
    scores = [record["evaluation"] for record in group]
    shares = [share for score in scores if (share := retention(score, teacher)) is not None]
    of_several = bool(shares) and len(group) > 1
    held_out = [record["held_out"] for record in group]
    return {
        "name": group[0]["student"],
        "method": group[0]["method"],
        "seeds": [record["seed"] for record in group],
        "chosen_seed": chosen(group)["seed"],
        "score": float(np.mean([score["mean"] for score in scores])),
        "retention": float(np.mean(shares)) if shares else None,
        "retention_95": retention_interval(scores, teacher) if of_several else None,
        "another_95": retention_interval(scores, teacher, another=True) if of_several else None,
        "held_out_loss": float(np.mean([found["loss"] for found in held_out])),
        "agreement": float(np.mean([found["agreement"] for found in held_out])),
        "regret": float(np.mean([found["regret"] for found in held_out])),
    }


def compare_methods(groups: Sequence[Sequence[StudentRecord]], main: str) -> list[MethodDifference]:
    """Each student's methods against its main one, corrected for their number.

    groups: the seeds of each student and method. Left out are those without students of the main
    method, with a single seed of either, or with other games.
    """
    mains = {group[0]["student"]: group for group in groups if group[0]["method"] == main}
    pairs = [
        (group, mains[group[0]["student"]])
        for group in groups
        if group[0]["method"] != main and group[0]["student"] in mains
    ]
    pairs = [pair for pair in pairs if _differ(*pair, confidence=CONFIDENCE) is not None]
    together = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    found = [_differ(*pair, confidence=together) for pair in pairs]
    known = [difference for difference in found if difference is not None]
    adjusted = holm([difference.p_value for difference in known])
    return [
        {
            "name": group[0]["student"],
            "method": group[0]["method"],
            "main": main,
            "difference": difference.mean,
            "together_95": [difference.low, difference.high],
            "p_value": p_value,
        }
        for (group, _), difference, p_value in zip(pairs, known, adjusted, strict=True)
    ]


def _differ(
    group: Sequence[StudentRecord], main: Sequence[StudentRecord], *, confidence: float
) -> Difference | None:
    scores = [record["evaluation"] for record in (*group, *main)]
    if not in_same_games(*scores):
        return None
    returns = np.array([score["returns"] for score in scores])
    return paired_difference(returns[: len(group)], returns[len(group) :], confidence=confidence)


def describe(student: StudentRecord, teacher: TeacherRecord) -> str:
    """One line on a trained and scored student, and on a weak teacher."""
    held_out, score = student["held_out"], student["evaluation"]
    retained = "the teacher is no better than random play"
    if (share := retention(score, teacher)) is not None:
        interval = retention_interval([score], teacher)
        ends = "" if interval is None else " [{:.1%}, {:.1%}]".format(*interval)
        weak = weakness(teacher)
        retained = f"retains {share:.1%}{ends}" + (f", but {weak}" if weak else "")
    return (
        f"{student['student']}, {student['method']}, seed {student['seed']}: "
        f"{score['mean']:,.2f}, {retained}; held-out loss {held_out['loss']:.4g}, agreement "
        f"{held_out['agreement']:.1%}; trained in {student['seconds']:,.0f} s"
    )
