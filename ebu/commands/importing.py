"""Make a run directory of weights from elsewhere that fit one of this project's networks.

python import.py dqn_breakout.zip --game breakout --out runs/sb3-breakout
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from agents.foreign.flags import PolicyFlags
from ebu.commands.trust import evaluate_command
from ebu.errors import UsageError
from ebu.run.cli import parse, run_command
from ebu.run.progress import say


@dataclass(frozen=True)
class ImportConfig:
    """Which weights become which run directory."""

    file: Annotated[Path, tyro.conf.Positional]
    """A zip of Stable-Baselines3, or weights of CleanRL."""
    out: Path
    """Run directory to make."""
    policy: PolicyFlags = field(default_factory=PolicyFlags)


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = parse(
        ImportConfig,
        sys.argv[1:],
        prog="import.py",
        description="Make a run directory of weights from Stable-Baselines3 or CleanRL.",
    )
    import_policy(config)
    say(f"{config.out}: score it with: {evaluate_command(config.out)}")
    return 0


def import_policy(config: ImportConfig) -> None:
    """Write the run directory, or complete one that was begun.

    Raises `UsageError` for weights that fit no network here and for a directory that holds
    something else, `EbuError` for a damaged file.
    """
    # Imported when the settings are known to be right: it loads torch.
    import torch

    from agents.foreign.formats import has_layers
    from agents.networks import QNetwork
    from agents.trained import IMPORTED, WEIGHTS
    from ebu.commands.policies import load_policy
    from ebu.run.checkpoint import save_checkpoint
    from ebu.run.directory import identity_of, open_run_directory

    if not has_layers(config.file):
        # A function is named as module:function.
        is_missing = ":" not in config.file.name and not config.file.exists()
        what = "does not exist" if is_missing else "is no file to import"
        raise UsageError(f"{config.file} {what}: name a zip, or a file of weights")
    agent = load_policy(config.file, config.policy, torch.device("cpu"))
    if not isinstance(agent.network, QNetwork):
        raise UsageError(
            f"{config.file} ({agent.config['settings']['network']}) fits none of this project's "
            "networks, three convolutions and a dense layer, or two dense layers, with ReLUs: "
            "evaluate and distil it from its file"
        )
    settings = {
        name: value for name, value in agent.config["settings"].items() if value is not None
    }
    run = {**agent.config, "settings": {**settings, "agent": IMPORTED}}
    state = {"agent": {"learner": {"online": dict(agent.network.state_dict())}}}
    with open_run_directory(
        config.out, run, may_change=frozenset({"from"}), may_grow=frozenset(), flag="--out"
    ):
        save_checkpoint(
            config.out / WEIGHTS["final"],
            f"frames-{agent.frames:012d}",
            {**state, "frames": agent.frames},
            run=identity_of(run),
            keep=1,
        )


command = partial(run_command, main)

if __name__ == "__main__":
    command()
