"""Resume a run from its newest checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebu.commands.training_environments import DIFFERS
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import Checkpoint, load_latest
from ebu.run.directory import CHECKPOINTS
from ebu.run.progress import say
from ebu.training import Trainer
from ebu.training_checkpoints import FRESH_GAMES
from envs import EnvironmentFault, ReplayMismatchError


def newest_checkpoint(
    run_dir: Path, identity: Mapping[str, Any], environment: Mapping[str, Any], *, fresh_games: bool
) -> Checkpoint | None:
    """The newest checkpoint, for fresh games also of those that an environment's fault left.

    Raises `UsageError` where the games of this environment cannot be played again.
    """
    exact = load_latest(run_dir / CHECKPOINTS, run=identity)
    if not fresh_games:
        if exact is not None and DIFFERS in environment:
            raise UsageError(
                f"{run_dir}: its game is no function of its seed and actions "
                f"({environment[DIFFERS]} between two copies): add --fresh-games to resume with "
                "new games"
            )
        return exact
    left = load_latest(run_dir / FRESH_GAMES, run=identity)
    if exact is None or left is None:
        return exact or left
    return max(exact, left, key=lambda checkpoint: int(checkpoint.state["frames"]))


def resume(trainer: Trainer, checkpoint: Checkpoint, *, fresh_games: bool) -> None:
    """Load a checkpoint into a run of its settings; `EbuError` in one line if it cannot be."""
    games = "beginning new games at" if fresh_games else "replaying the games up to"
    say(f"{trainer.run_dir}: {games} frame {checkpoint.state['frames']:,}")
    try:
        trainer.load(checkpoint, fresh_games=fresh_games)
    except ReplayMismatchError as error:
        raise EbuError(str(error)) from error
    except EnvironmentFault as fault:
        raise EbuError(f"{fault}; --fresh-games resumes with new games") from fault
    except KeyError as error:
        raise EbuError(
            f"{checkpoint.directory} was written by another version and has no {error}: "
            "resume the run with that version, or start a new one"
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise EbuError(
            f"{checkpoint.directory} does not fit this run ({' '.join(str(error).split())})"
            ": put back the run's own checkpoint"
        ) from error
