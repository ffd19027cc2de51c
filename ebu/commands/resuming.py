"""Resume a run from its newest checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ebu.commands.training_environments import DIFFERS
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import Checkpoint, load_latest
from ebu.run.directory import CHECKPOINTS
from ebu.run.progress import say, starting
from ebu.run.reading import RefusedFileError
from ebu.state_checks import MOST_COUNTED, REFUSED, check_range, check_state, require
from ebu.training import Trainer
from ebu.training_checkpoints import FRESH_GAMES
from envs import EnvironmentFault, ReplayMismatchError

DOES_NOT_FIT = "does not fit this run ({}): put back the run's own checkpoint"


def newest_checkpoint(
    run_dir: Path, identity: Mapping[str, Any], environment: Mapping[str, Any], *, fresh_games: bool
) -> Checkpoint | None:
    """The newest checkpoint, for fresh games also of those that an environment's fault left.

    Raises `UsageError` where the games of this environment cannot be played again.
    """
    exact = _newest(run_dir / CHECKPOINTS, identity)
    if not fresh_games:
        if exact is not None and DIFFERS in environment:
            raise UsageError(
                f"{run_dir}: its game is no function of its seed and actions "
                f"({environment[DIFFERS]} between two copies): add --fresh-games to resume with "
                "new games"
            )
        return exact
    left = _newest(run_dir / FRESH_GAMES, identity)
    if exact is None or left is None:
        return exact or left
    return max(exact, left, key=lambda checkpoint: int(checkpoint.state["frames"]))


def _newest(root: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    checkpoint = load_latest(root, run=identity)
    if checkpoint is not None:
        try:
            check_state(checkpoint.state, {"frames": 0})
        except (KeyError, RefusedFileError) as error:
            raise EbuError(f"{checkpoint.directory} {DOES_NOT_FIT.format(error)}") from error
    return checkpoint


def resume(trainer: Trainer, checkpoint: Checkpoint, *, fresh_games: bool) -> None:
    """Load a checkpoint into a run of its settings; `EbuError` in one line if it cannot be."""
    games = "beginning new games at" if fresh_games else "replaying the games up to"
    say(f"{trainer.run_dir}: {games} frame {checkpoint.state['frames']:,}")
    try:
        _check_games(checkpoint.state["env"], trainer)
        with starting(trainer.env.num_envs, "games again"):
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
    except REFUSED as error:
        reason = " ".join(str(error).split())
        raise EbuError(f"{checkpoint.directory} {DOES_NOT_FIT.format(reason)}") from error


def _check_games(state: Any, trainer: Trainer) -> None:
    """Raise `RefusedFileError` unless a journal of games, if there is one, is of these games."""
    check_state({"env": state}, {"env": {}})
    journal, count = state.get("journal"), np.zeros(trainer.env.num_envs, np.int64)
    own = state if journal is None else journal
    if "seedings" in own:
        check_state(own, {"seedings": count}, path="env/")
        check_range(own["seedings"], 0, MOST_COUNTED, "env/seedings")
    if journal is None:
        return
    games = {"actions": np.zeros((0, len(count)), np.uint8), "starts": count, "seedings": count}
    check_state(journal, games, longer=("actions",), path="env/journal/")
    actions, starts = journal["actions"], journal["starts"]
    check_range(actions, 0, trainer.env.num_actions - 1, "env/journal/actions")
    check_range(starts, 0, len(actions), "env/journal/starts")
    check_range(journal["seedings"], 1, MOST_COUNTED, "env/journal/seedings")
    require(bool((starts == 0).any()), "env/journal/starts begin after the first action")
