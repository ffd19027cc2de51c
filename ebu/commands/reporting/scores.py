"""What a run scored: the records that evaluate.py leaves, and which of them is the run's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ebu.commands.trust import evaluate_command
from ebu.errors import EbuError
from ebu.run.files import as_json, write_whole
from ebu.run.reading import read_json
from envs.protocols import PROTOCOLS

FOLDER = "evaluations"
"""Folder of a run directory with a file for each question that evaluate.py has answered."""

FINAL = "evaluation.json"
"""The final score alone: in a committed result, and in run directories of earlier versions."""


@dataclass(frozen=True)
class RunScore:
    """What a run scored.

    | field | meaning |
    | --- | --- |
    | mean, games | mean raw score over a number of games |
    | interval | [low, high] for the mean, over games; None for a single game |
    | frames | emulator frames the weights were trained on |
    | protocol | the rules of the evaluation |
    | final | by evaluate.py, of the final weights; otherwise the last evaluation in training |
    """

    mean: float
    games: int
    interval: tuple[float, float] | None
    frames: int
    protocol: str
    final: bool


class EvaluationRecord(TypedDict):
    """What is read of a record of evaluate.py; a record of random play has no `trained_frames`."""

    policy: str
    weights: str | None
    protocol: str
    games: int
    mean: float
    interval_95: list[float] | None
    trained_frames: int | None
    epsilon: NotRequired[float]
    protocol_epsilon: NotRequired[float]
    max_steps: NotRequired[int | None]
    seed: NotRequired[int]
    num_envs: NotRequired[int]
    median: NotRequired[float]
    deviation: NotRequired[float | None]
    human_normalised: NotRequired[float | None]
    human_table: NotRequired[str | None]
    random_score: NotRequired[float | None]
    human_score: NotRequired[float | None]
    precision: NotRequired[str | None]


def write_evaluation(run_dir: Path, record: Mapping[str, Any]) -> Path:
    """Keep a record of evaluate.py in the run directory; the same question writes the same file.

    Raises `EbuError` where the directory cannot be written.
    """
    path = run_dir / FOLDER / _file_name(record)
    write_whole(path, as_json(record))
    return path


def _file_name(record: Mapping[str, Any]) -> str:
    """Everything that makes another evaluation of the same run.

    The number of environments is among it: with another number other games are played.
    """
    if record["policy"] == "random":
        played = ["random"]
    else:
        # repr, unlike %g, tells any two numbers apart.
        played = [
            str(record["weights"]),
            f"{record['trained_frames']}frames",
            f"eps{float(record['epsilon'])!r}",
        ]
    setting = [f"{record['games']}games", f"seed{record['seed']}", f"{record['num_envs']}envs"]
    if record.get("max_steps") is not None:
        setting.append(f"{record['max_steps']}steps")
    return "-".join([str(record["protocol"]), *played, *setting]) + ".json"


def final_record(run_dir: Path, protocol: str, games: int | None = None) -> dict[str, Any] | None:
    """The record that is the run's score; None without one.

    It is of the final weights, the protocol's ε and games of the run's own length. Of several the
    one after most frames counts; then one under `protocol`, the run's own; then one of `games`
    games, or of the protocol's number if not given; then one of most games; then that of the
    lowest seed.

    Raises `EbuError` if a file is damaged.
    """
    found = [record for record in read_records(run_dir) if _is_a_score(record)]

    def rank(record: dict[str, Any]) -> tuple[Any, ...]:
        wanted = PROTOCOLS[record["protocol"]].eval_episodes if games is None else games
        return (
            record["trained_frames"],
            record["protocol"] == protocol,
            record["games"] == wanted,
            record["games"],
            -record.get("seed", 0),
        )

    return max(found, key=rank, default=None)


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """All records of evaluate.py in a run directory. Raises `EbuError` if one is damaged."""
    # Hidden ones are drafts of `write_whole`, which a killed process leaves half written.
    paths = [path for path in (run_dir / FOLDER).glob("*.json") if not path.name.startswith(".")]
    paths = [run_dir / FINAL, *sorted(paths)]
    return [record for path in paths if (record := _read(path, run_dir)) is not None]


def _read(path: Path, run_dir: Path) -> dict[str, Any] | None:
    try:
        record = read_json(path, EvaluationRecord)
        if record["policy"] == "agent" and record["weights"] == "final":
            score_of(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise EbuError(
            f"{path} cannot be read ({error!r}): remove it, and score the run again with: "
            f"{evaluate_command(run_dir)}"
        ) from error
    return dict(record)


def _is_a_score(record: Mapping[str, Any]) -> bool:
    # Earlier versions had no other ε than the protocol's, and did not record it.
    epsilon = record.get("epsilon")
    of_protocol = bool(epsilon == record.get("protocol_epsilon", epsilon))
    whole_games = record.get("max_steps") is None
    of_final_weights = record["policy"] == "agent" and record["weights"] == "final"
    return of_protocol and whole_games and of_final_weights


def score_of(record: Mapping[str, Any], *, final: bool = True) -> RunScore:
    """The score in a record of evaluate.py on an agent.

    Raises `KeyError`, `TypeError` or `ValueError` where it is none.
    """
    protocol, interval = record["protocol"], record["interval_95"]
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}")
    return RunScore(
        mean=float(record["mean"]),
        games=int(record["games"]),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        frames=int(record["trained_frames"]),
        protocol=protocol,
        final=final,
    )


def score_in_training(line: Mapping[str, Any], protocol: str) -> RunScore:
    """The score in a line of evaluations.jsonl; raises as `score_of`."""
    record = {**line, "trained_frames": line["frames"], "protocol": protocol}
    return score_of(record, final=False)
