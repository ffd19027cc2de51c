"""Release a trained agent in a folder for a model hub: weights, evaluation, film, model card.

python release.py runs/pong --out hub/pong
python release.py runs/pong --out hub/pong --push USER/pong-ebu
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ebu.commands.trust import evaluate_command
from ebu.errors import UsageError
from ebu.run.cli import parse, run_command
from ebu.run.progress import say
from ebu.run.settings import Bounds, Device, Threads


@dataclass(frozen=True)
class ReleaseConfig:
    """Which agent is released, and where."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Run directory, or that of a student."""
    out: Path
    """Folder to write. Only a folder of the same agent may be there already; it is replaced."""
    weights: Literal["final", "best"] = "final"
    """final: of the newest checkpoint; best: of the best evaluation in training."""
    episodes: Annotated[int | None, Bounds(1, 1_000_000)] = None
    """Games of the evaluation that is played and filmed [default: the protocol's]."""
    device: Device = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: Threads = 0
    """Threads of torch and of the emulators; 0 takes all processor cores but one."""
    trust_env: bool = False
    """Import the module that the run's environment is from (module:Env-v0): its code runs."""
    push: str | None = None
    """Push the folder to this repository of the Hugging Face Hub (USER/NAME), with your token."""
    private: bool = False
    """Make a repository that --push creates private."""


def parse_arguments(args: Sequence[str]) -> ReleaseConfig:
    """Flags to a checked configuration; --help prints and exits with 0.

    Raises `UsageError` with one line for what cannot be run.
    """
    config = parse(
        ReleaseConfig,
        args,
        prog="release.py",
        description="Release a trained agent in a folder for a model hub.",
    )
    if config.private and config.push is None:
        raise UsageError("--private says nothing without --push: add it, or leave --private out")
    return config


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = parse_arguments(sys.argv[1:])
    # Imported when the settings are known to be right: they load torch.
    from ebu.commands.releasing.card import WEIGHTS_FLAG
    from ebu.commands.releasing.folder import write_folder
    from ebu.commands.releasing.push import check_push, push_folder

    if config.push is not None:
        check_push(config.push)
    write_folder(config)
    weights = WEIGHTS_FLAG[config.weights]
    say(f"{config.out}: play it with: {evaluate_command(config.out, *weights)}")
    if config.push is not None:
        say(f"pushed: {push_folder(config.out, config.push, private=config.private)}")
    return 0


command = partial(run_command, main)

if __name__ == "__main__":
    command()
