"""Train an agent on an Atari game or any Gymnasium environment with discrete actions."""

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ebu.commands.presets import TrainConfig
from ebu.commands.train_arguments import (
    gymnasium_defaults,
    parse_arguments,
    unlike_the_protocol,
    without_effect,
)
from ebu.commands.trust import trust_words
from ebu.errors import EbuError
from ebu.run.cli import run_command
from ebu.run.hints import program_command, tensorboard_command
from ebu.run.ranks import Ranks
from ebu.run.settings import flat
from ebu.run.signals import stop_on_signals
from envs import EnvironmentFault, is_atari, watchdog

if TYPE_CHECKING:
    from ebu.training import Trainer


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    ranks = Ranks.from_environment()
    with ranks.connected():
        with ranks.together():
            config = parse_arguments(sys.argv[1:])
        return train(config, ranks)


def train(config: TrainConfig, ranks: Ranks) -> int:
    """Train, and return the exit code; of several ranks only the first prints."""
    # Imported when the settings are known to be right: they load torch.
    from ebu.commands.trainer import build_trainer
    from ebu.host_memory import share_one_heap
    from ebu.run.progress import say

    share_one_heap()
    trainer = build_trainer(config, ranks)
    again = partial(start_command, ranks, "--resume", trainer.run_dir, *trust_words(flat(config)))
    for line in first_lines(config, trainer, ranks):
        say(line)
    if trainer.finished(config.frames):
        more = again("--frames", 2 * trainer.frames)
        say(f"already at {trainer.frames:,} frames: train it further with: {more}")
    stopped_by = play(config, trainer, ranks, again)
    if trainer.profile is not None:
        say(trainer.profile.outcome)
    if stopped_by is not None:
        say(f"stopped at frame {trainer.frames:,}: resume with: {again()}")
        return 128 + stopped_by
    for line in last_lines(config, trainer.run_dir):
        say(line)
    return 0


def play(
    config: TrainConfig, trainer: "Trainer", ranks: Ranks, again: Callable[..., str]
) -> int | None:
    """Train to the end of the run and close the trainer; the signal that stopped it before, if any.

    `again` returns the command that resumes the run, with the words given to it added.

    Raises `EbuError`, once the run is saved, for a fault of the environment.
    """
    from ebu.run.busy_cores import note_busy_cores, threads_left_automatic
    from ebu.run.directory import automatic_settings, read_config
    from ebu.run.progress import Progress

    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        trainer.stop_requested = True

    def rescue(what: str) -> str:
        try:
            return f"{what}; {trainer.rescue()}"
        except EbuError as error:
            return f"{what}; {error}"

    def last_words(what: str) -> str:
        if not ranks.is_first:
            # The watchdog prints them and ends the process, which is silent until then.
            sys.stderr = sys.__stderr__
        return rescue(what)

    watchdog.last_words = last_words
    progress = Progress(config.frames, initial=trainer.frames)
    # Only the first rank is sure to see the directory.
    automatic = automatic_settings(read_config(trainer.run_dir)) if ranks.is_first else []
    advice = f"stop with Ctrl-C, and resume with: {again('--threads', 1)}"
    with stop_on_signals(stop), note_busy_cores(threads_left_automatic(automatic), advice):
        try:
            finished = trainer.finished(config.frames) or trainer.run(config.frames, progress)
            finished = finished and trainer.finish(progress)
        except EnvironmentFault as fault:
            raise EbuError(rescue(str(fault))) from fault
        finally:
            progress.close()
            trainer.close()
    # Another rank may have had the signal.
    return None if finished else (stopped_by or [signal.SIGTERM])[0]


def first_lines(config: TrainConfig, trainer: "Trainer", ranks: Ranks) -> Iterator[str]:
    """What is said of a run before it trains."""
    if not trainer.frames:
        for line in (*without_effect(config), *unlike_the_protocol(config)):
            yield f"warning: {line}"
    if not is_atari(config.game):
        yield gymnasium_defaults(config, trainer.env.frame_shape)
        yield f"observations are {trainer.env.observation}"
    started = f"resuming at frame {trainer.frames:,}" if trainer.frames else "starting"
    if not ranks.is_single:
        started += f" in {ranks.world_size} processes"
    watch = tensorboard_command(trainer.run_dir)
    yield f"{trainer.run_dir}: {started}; watch it with: {watch}"


def last_lines(config: TrainConfig, run_dir: Path) -> Iterator[str]:
    """What can be done with a finished run."""
    trust = trust_words(flat(config))
    yield f"done: score it with: {program_command('evaluate.py', run_dir, *trust)}"
    if is_atari(config.game):
        filming = program_command("evaluate.py", run_dir, "--video", "best_game.mp4")
        yield f"and film its best game with: {filming}"
    if config.distill:
        from agents.distillation.records import student_directory
    for name in config.distill or ():
        student = student_directory(run_dir, name)
        yield f"and {name} with: {program_command('evaluate.py', student, *trust)}"


def start_command(ranks: Ranks, *words: object) -> str:
    """The command that starts as many processes on this machine, with these words."""
    started = program_command("train.py", *words, processes=ranks.local_world_size)
    machines = ranks.world_size > ranks.local_world_size
    return f"{started} (with torchrun's flags for several machines)" if machines else started


command = partial(run_command, main)

if __name__ == "__main__":
    command()
