"""Run directories as a study and its report see them: settings, score, learning curve."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from ebu.commands.reporting.scores import RunScore, final_record, score_in_training, score_of
from ebu.errors import EbuError, UsageError
from ebu.run.directory import (
    CONFIG,
    EVALUATIONS,
    METRICS,
    NOT_PART_OF_THE_RUN,
    read_config,
    require,
)
from ebu.run.progress import say
from ebu.run.reading import (
    MOST_LOG_BYTES,
    RefusedFileError,
    open_file,
    parse_json,
    read_file,
    shorten,
)
from envs.protocols import PROTOCOLS

Curve = tuple[np.ndarray, np.ndarray]
"""Frames (T,) int64 and returns (T,) float64, from `learning_curve`."""

LAST_GAMES = "train/return_last_100_games"

# Settings by which runs of one method may differ: what they are played on, for how long, how fast,
# how they are watched, and what is distilled from them. Evaluations in training draw nothing from a
# run's random numbers.
_NOT_THE_METHOD = NOT_PART_OF_THE_RUN | {
    *("game", "seed", "frames", "preset", "log_every_frames", "eval_every_frames", "eval_episodes"),
    *("device", "threads", "deterministic", "cuda_graphs", "distill"),
}
# What was done before these were settings; nstep has always recorded its n_step.
_FIXED: dict[str, Any] = {
    "n_step": 1,
    "anneal_updates": 10_000,
    "shift_pixels": 0,
    "intensity": 0.0,
    "quantiles": 0,
    "target_average": 0.0,
    "reset_updates": 0,
    "weight_decay": 0.0,
}
_OFF: tuple[Any, ...] = (None, "", [], ())
_FIXED_BY_AGENT: dict[str, dict[str, Any]] = {
    "double_dqn": {"double": True},
    "prioritized": {"prioritized": True, "double": True},
    "nstep": {"n_step": None},
}
_OF_PRIORITIZED = ("priority_exponent", "importance_exponent", "importance_updates")
# The last lines of a log are read from this many bytes at its end.
_TAIL_BYTES = 65_536


Line = TypedDict("Line", {"frames": int, "train/return_last_100_games": NotRequired[float | None]})
"""What a line of a log has in common with all others."""


@dataclass(frozen=True)
class Run:
    """A run directory that could be read.

    | field | meaning |
    | --- | --- |
    | settings | the flat settings in config.json |
    | score | None before the first evaluation |
    | played_frames | emulator frames at the last line of metrics, or of a later score |
    | last_games | mean raw return of the last 100 training games; None before the first |
    """

    directory: Path
    settings: dict[str, Any]
    score: RunScore | None
    played_frames: int
    last_games: float | None

    @property
    def game(self) -> str:
        return str(self.settings["game"])

    @property
    def agent(self) -> str:
        return str(self.settings["agent"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def precision(self) -> str:
        """Arithmetic of its networks; before it was a setting there was float32 alone."""
        return str(self.settings.get("precision", "float32"))

    @property
    def asked_frames(self) -> int:
        """Emulator frames the run was last asked to play."""
        return int(self.settings["frames"])

    @property
    def final_score(self) -> RunScore | None:
        """The score after all frames the run was asked to play; None where there is none."""
        if self.score is None or self.score.frames < self.asked_frames:
            return None
        return self.score


def find_run_directories(roots: Iterable[Path]) -> list[Path]:
    """Run directories at or under these directories, each once, in the order of their names.

    Raises `UsageError` for a root that is no directory or holds none.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"{root} is not a directory: name run directories, or one of a study")
        under, closed = list[Path](), list[OSError]()
        for directory, inside, files in os.walk(root, onerror=closed.append):
            if CONFIG in files:
                under.append(Path(directory))
                inside.clear()
        for error in closed:
            say(f"warning: {error.filename} cannot be read, and is left out: {error.strerror}")
        if not under:
            raise UsageError(f"there is no run directory in {root}: none has a {CONFIG}")
        found |= {path.resolve(): path for path in sorted(under)}
    return list(found.values())


def read_run(run_dir: Path, games: int | None = None) -> Run:
    """Read a run directory; of several scores the one in `games` games is preferred.

    Raises `EbuError`, naming the file, where it is damaged.
    """
    settings = read_config(run_dir)["settings"]
    require(run_dir, settings, "game", "agent", "protocol", "seed", "frames")
    if settings["protocol"] not in PROTOCOLS:
        named = shorten(settings["protocol"])
        raise EbuError(f"{run_dir / CONFIG} names an unknown protocol, {named}: restore it")
    lines = tail(run_dir / METRICS)
    returns = [line[LAST_GAMES] for line in lines if line.get(LAST_GAMES) is not None]
    score = _read_score(run_dir, settings, games)
    played = [line["frames"] for line in lines[-1:]]
    return Run(
        directory=run_dir,
        settings=settings,
        score=score,
        played_frames=max((*played, 0 if score is None else score.frames)),
        last_games=returns[-1] if returns else None,
    )


def read_runs(run_dirs: Sequence[Path]) -> tuple[list[Run], dict[Path, Curve], list[str]]:
    """The runs that can be read, their learning curves, and a line for each that cannot."""
    runs, curves, damaged = [], {}, []
    for run_dir in run_dirs:
        try:
            curve = learning_curve(run_dir)
            runs.append(read_run(run_dir))
            curves[run_dir] = curve
        except EbuError as error:
            damaged.append(str(error))
    return runs, curves, damaged


def _read_score(run_dir: Path, settings: dict[str, Any], games: int | None) -> RunScore | None:
    record = final_record(run_dir, settings["protocol"], games)
    if record is not None:
        return score_of(record)
    path = run_dir / EVALUATIONS
    try:
        lines = tail(path)
        return score_in_training(lines[-1], settings["protocol"]) if lines else None
    except (KeyError, TypeError, ValueError) as error:
        raise EbuError(f"{path} cannot be read ({error!r}): restore or remove it") from error


def learning_curve(run_dir: Path) -> Curve:
    """Frames (T,) int64 and the mean raw return (T,) float64 of the last 100 training games.

    Lines of metrics before the first game's end are left out. Raises `EbuError` for damaged ones.
    """
    path = run_dir / METRICS
    try:
        text = read_file(path, MOST_LOG_BYTES).decode()
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    lines = _parse(path, text.splitlines(keepends=True), first=1)
    points = [(line["frames"], line[LAST_GAMES]) for line in lines if LAST_GAMES in line]
    frames = np.array([frame for frame, _ in points], dtype=np.int64)
    # A value that was not finite is null.
    returns = np.array([np.nan if x is None else x for _, x in points], dtype=np.float64)
    return frames[~np.isnan(returns)], returns[~np.isnan(returns)]


def tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a log of JSON lines; none where there is no log.

    Raises `EbuError` for a damaged one. A line without its end is still being written.
    """
    try:
        with open_file(path) as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    except (OSError, RefusedFileError) as error:
        raise _unreadable(path, error) from error
    lines = text.splitlines(keepends=True)
    return _parse(path, lines[1:] if size > _TAIL_BYTES else lines, first=None)


def _parse(path: Path, lines: list[str], first: int | None) -> list[dict[str, Any]]:
    if lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
    records = []
    for index, line in enumerate(lines):
        try:
            record = parse_json(line, Line)
            if record["frames"] < 0:
                raise RefusedFileError("frames is negative")
        except RefusedFileError as error:
            where = "near its end" if first is None else f"in line {first + index}"
            raise EbuError(f"{path} is damaged {where} ({error}): restore it") from error
        records.append(record)
    return records


def _unreadable(path: Path, error: Exception) -> EbuError:
    return EbuError(f"{path} cannot be read ({error}): make it readable or restore it")


def method_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make the method: runs that share them are seeds and games of one method.

    Left out is what earlier code did not record: settings that are off (none, false or empty) or at
    the value that was once fixed, by the agent's name too, and those of prioritized draws where
    draws are not prioritized.
    """
    method = {name: value for name, value in settings.items() if name not in _NOT_THE_METHOD}
    fixed = {**_FIXED, **_FIXED_BY_AGENT.get(str(settings.get("agent")), {})}
    if not settings.get("prioritized", fixed.get("prioritized")):
        fixed |= {name: method.get(name) for name in _OF_PRIORITIZED}
    return {
        name: value
        for name, value in method.items()
        if (value != fixed[name] if name in fixed else value is not False and value not in _OFF)
    }


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell methods with different settings apart."""
    text = json.dumps(method_settings(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
