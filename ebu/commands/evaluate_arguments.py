"""Parse and check the flags of evaluate.py, before torch is loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ebu.commands.reporting.scores import EvaluationRecord
from ebu.errors import UsageError
from ebu.run.cli import parse
from ebu.run.files import check_place
from ebu.run.reading import read_json
from ebu.run.settings import Bounds, Device, NotNegative, OneOf, Share, Threads
from ebu.run.video import check_video_path
from envs import MOST_STEPS
from envs.protocols import PROTOCOLS


@dataclass(frozen=True)
class EvaluateConfig:
    """What is scored, and under which rules."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory of the run whose agent is scored; the result goes to RUN_DIR/evaluations. Or a
    policy from elsewhere: a zip of Stable-Baselines3, weights of CleanRL, an ONNX file, or a
    function (module:function)."""
    game: str | None = None
    """Game of a policy from elsewhere, where its file does not say it."""
    action_set: Literal["minimal", "full"] | None = None
    """Atari actions of a policy from elsewhere: those that the game uses, or all 18 [default: as
    many as it has outputs]."""
    unit_pixels: bool = False
    """An ONNX file takes pixels from 0 to 1, not from 0 to 255."""
    episodes: Annotated[int | None, Bounds(1, 1_000_000)] = None
    """Games to play [default: the protocol's, 30 under paper, otherwise 100]."""
    epsilon: Share | None = None
    """Share of random actions [default: the protocol's, the run's final one under machado,
    otherwise 0.05]. With another number the score is not comparable under the protocol."""
    max_steps: Annotated[int | None, Bounds(1, MOST_STEPS)] = None
    """Agent steps after which a game is cut [default: as in the run's own evaluations]."""
    protocol: Annotated[str, OneOf(*PROTOCOLS)] | None = None
    """paper, machado or atari100k [default: the one the run was trained under, paper where that is
    not known]."""
    weights: Literal["final", "best"] = "final"
    """final: of the newest checkpoint; best: of the best evaluation in training."""
    random: bool = False
    """Play uniformly random actions instead, in the same games: the baseline."""
    seed: NotNegative = 0
    """Seed of the evaluation. Its games are never those of a training seed."""
    num_envs: NotNegative = 0
    """Games played at the same time; 0 chooses. Another number plays other games."""
    device: Device = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: Threads = 0
    """Threads of torch and of the emulators; 0 takes all processor cores but one."""
    trust_env: bool = False
    """Import the module that the run's environment is from (module:Env-v0): its code runs."""
    video: Path | None = None
    """Write a video of the best game here, as .gif or .mp4, at twice its speed."""
    render: bool = False
    """Show the games in a window while they are played, one after another in real time."""
    json: Path | None = None
    """Write the result here, too, with the score of every game."""


def parse_arguments(args: Sequence[str]) -> EvaluateConfig:
    """Flags to a checked configuration; --help prints and exits with 0.

    Raises `UsageError` with one line for what cannot be run.
    """
    config = parse(
        EvaluateConfig,
        args,
        prog="evaluate.py",
        description="Score a trained agent under a named protocol.",
    )
    check(config)
    return config


def check(config: EvaluateConfig) -> None:
    """Raise `UsageError` for settings, each within its range, that can be met by no run."""
    if config.random and config.epsilon is not None:
        raise UsageError("--epsilon says nothing with --random: leave one of them out")
    if config.random and config.weights == "best":
        raise UsageError("--weights best says nothing with --random: leave one of them out")
    for path in filter(None, (config.video, config.json)):
        if path.is_dir():
            raise UsageError(f"{path} is a directory: name a file")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.parent}")
        try:
            check_place(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; name another file") from error
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{path} is not writable: choose another place")
    if config.json is not None and config.json.exists() and not _is_result(config.json):
        raise UsageError(
            f"--json {config.json} is a file that evaluate.py did not write: name another one"
        )
    if config.video is not None:
        check_video_path(config.video)
        if config.json is not None and config.json.resolve() == config.video.resolve():
            raise UsageError(f"--json and --video are both {config.video}: name two files")


def _is_result(path: Path) -> bool:
    """Whether this is the result of an evaluation, which another may replace, or empty."""
    try:
        if path.stat().st_size:
            read_json(path, EvaluationRecord)
    except (OSError, ValueError):
        return False
    return True
