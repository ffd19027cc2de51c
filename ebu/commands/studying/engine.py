"""Where the runs of a study are played: on this machine, a Ray cluster, or through Slurm."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ebu.commands.studying.plan import StudyConfig
from ebu.commands.studying.player import Player, Task
from ebu.commands.studying.provenance import code_version
from ebu.errors import UsageError
from ebu.run.hints import install_command
from envs.games import quote

_PACKAGES = {"ray": ("ray", "cluster"), "slurm": ("submitit", "slurm")}
# What the engine says to sbatch.
_OURS = {
    "cpus-per-task": "each run gets its threads, -- --threads N",
    "gpus-per-node": "a job with -- --device cuda gets one",
    "signal": "it is sent five minutes before the end",
}


class Engine(Protocol):
    """Plays tasks, each at once or as soon as there is room for it."""

    def submit(self, task: Task) -> None:
        """Play a task. One whose machine dies is played again from its checkpoint."""

    def ended(self) -> Iterator[tuple[Task, str]]:
        """Tasks that have ended since the last call, each with how it failed, empty if it did not.

        Raises `EbuError` where the engine or a file of the study fails.
        """

    def stop(self, wait: bool = False) -> None:
        """Ask every task to save and to end, or not to begin; `wait`: until all have ended."""


class LocalEngine:
    """Plays tasks at once, each in a process of this machine."""

    def __init__(self, code: dict[str, str]) -> None:
        """`code`: as of `Player`."""
        self._code = code
        self._players: list[Player] = []

    def submit(self, task: Task) -> None:
        self._players.append(Player(task, self._code))

    def ended(self) -> Iterator[tuple[Task, str]]:
        for player in self._players.copy():
            failure = player.poll()
            if failure is not None:
                self._players.remove(player)
                yield player.task, failure

    def stop(self, wait: bool = False) -> None:
        for player in self._players:
            player.stop()
        for player in self._players if wait else ():
            player.wait()


@contextmanager
def open_engine(config: StudyConfig) -> Iterator[Engine]:
    """The engine of a study; what was started for it ends with the block.

    Raises `UsageError` where it is not to be had here.
    """
    if config.engine == "ray":
        from ebu.commands.studying.ray_engine import open_ray

        with open_ray(config.address, config.runs_per_gpu) as ray_engine:
            yield ray_engine
    elif config.engine == "slurm":
        from ebu.commands.studying.slurm_engine import open_slurm

        options = sbatch_options(config.sbatch)
        folder = config.out.absolute() / "slurm"
        yield open_slurm(folder, options, config.runs_per_gpu, local=config.address == "local")
    else:
        yield LocalEngine(code_version())


def check_engine(config: StudyConfig) -> None:
    """Raise `UsageError` for an engine that is not installed, or flags that are not its own."""
    if config.engine == "local":
        if config.address:
            raise UsageError("--address is for --engine ray and slurm: add one, or leave it out")
        if config.runs_per_gpu != 1:
            raise UsageError(
                "--runs-per-gpu is for --engine ray and slurm: on this machine all --jobs runs "
                "share the GPU"
            )
    if config.engine != "slurm" and config.sbatch:
        raise UsageError("--sbatch is for --engine slurm: add it, or leave --sbatch out")
    if config.engine == "slurm" and config.address not in ("", "local"):
        raise UsageError(
            f"--address {config.address}: --engine slurm submits where it is started, or to this "
            "machine with --address local"
        )
    sbatch_options(config.sbatch)
    if config.engine in _PACKAGES:
        package, extra = _PACKAGES[config.engine]
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--engine {config.engine} needs {package}, in the extra '{extra}': "
                f"{install_command(extra)}"
            )


def sbatch_options(words: Sequence[str]) -> dict[str, str]:
    """Options of sbatch by name. Raises `UsageError` for what is none."""
    options = dict[str, str]()
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not (name and equals and value):
            raise UsageError(f"--sbatch {quote(word)}: write NAME=VALUE, such as partition=gpu")
        if name in _OURS:
            raise UsageError(f"--sbatch {name} is the study's to say: {_OURS[name]}")
        if name == "time" and not (value.isdecimal() and int(value) > 0):
            raise UsageError(f"--sbatch time={quote(value)}: write minutes, such as time=1440")
        options[name] = value
    return options
