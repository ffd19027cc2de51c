"""Export an agent, and the students of its `train.py --distill`, to ONNX, and measure the files.

python export.py runs/pong --out runs/pong-onnx
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.distillation.records import EXPORT, REPORT
from agents.distillation.settings import Stopped, require_export
from agents.foreign.flags import PolicyFlags
from ebu.errors import EbuError
from ebu.run.cli import parse, run_command
from ebu.run.progress import say
from ebu.run.settings import Bounds, NotNegative, Positive, Threads
from ebu.run.signals import stop_on_signals
from envs import EnvironmentFault


@dataclass(frozen=True)
class ExportConfig:
    """Who is exported, and how the files are measured."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The agent: a run directory, a student's too, or a policy from elsewhere: a zip of
    Stable-Baselines3 or weights of CleanRL."""
    out: Path
    """Output directory. Run the same command again to resume, or to have lost files made again."""
    weights: Literal["final", "best"] | None = None
    """The newest weights, or those of the best evaluation [default: final; best of a run with
    students of train.py --distill, whose teacher they are]."""
    states: Annotated[int, Bounds(2, 10**9)] = 12_000
    """States that the agent plays: the files are calibrated and compared on them."""
    games: Positive = 10
    """Games of every score: of the agent, its students, and their int8 files."""
    num_envs: Annotated[int, Bounds(2, 10_000)] = 16
    """Environments stepped together for states."""
    seed: NotNegative = 0
    """Seed of the states and of the scored games."""
    threads: Threads = 0
    """Threads of torch and of the emulators; 0 takes all processor cores but one."""
    trust_env: bool = False
    """Import the module that the run's environment is from (module:Env-v0): its code runs."""
    policy: PolicyFlags = field(default_factory=PolicyFlags)


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = parse(
        ExportConfig,
        sys.argv[1:],
        prog="export.py",
        description="Export an agent to ONNX, float32 and int8, and measure the files.",
    )
    require_export()
    # Imported when the settings are known to be right: it loads torch.
    from ebu.commands.distilling.export import run_export

    stopped_by: list[int] = []
    try:
        with stop_on_signals(stopped_by.append):
            run_export(config, should_stop=lambda: bool(stopped_by))
    except Stopped:
        say("stopped: run the same command again to resume")
        return 128 + stopped_by[0]
    except EnvironmentFault as fault:
        raise EbuError(f"{fault}; run the same command again to resume") from fault
    print(f"files: {config.out / EXPORT}")
    say(f"report: {config.out / REPORT}")
    return 0


command = partial(run_command, main)

if __name__ == "__main__":
    command()
