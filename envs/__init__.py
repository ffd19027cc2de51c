"""Where agents live: Atari games and Gymnasium environments behind one interface.

`make_vector` builds either from a name. Rows, seeds and restore: `envs.vector`.
"""

import difflib
import importlib

import gymnasium

import envs.maze  # noqa: F401 (registers ebu/Maze-v0)
from envs.atari import AtariVector
from envs.games import (
    UnknownGameError,
    UnplayableGameError,
    canonical_game,
    did_you_mean,
    nearest_games,
    reference_scores,
    shown,
)
from envs.gymnasium_vector import GymnasiumVector
from envs.protocols import Protocol
from envs.vector import ReplayMismatchError, VectorEnvironment, VectorStep

__all__ = [
    "AtariVector",
    "GymnasiumVector",
    "ReplayMismatchError",
    "UnknownGameError",
    "VectorEnvironment",
    "VectorStep",
    "evaluation_epsilon",
    "is_atari",
    "make_vector",
    "random_and_human",
]


def is_atari(game: str) -> bool:
    """Whether `make_vector` plays this name on the emulator.

    An id that somebody registered with Gymnasium is theirs, even if it is called like a game.
    """
    if _is_theirs(game) or (":" in game and not game.lower().startswith("ale_py:")):
        return False
    try:
        canonical_game(game)
    except UnknownGameError:
        return False
    return True


def make_vector(
    game: str,
    num_envs: int,
    *,
    seed: int,
    protocol: Protocol,
    training: bool,
    num_threads: int = 0,
) -> VectorEnvironment:
    """N environments of an Atari game or of a Gymnasium id (`CartPole-v1`, `module:MyEnv-v0`).

    The protocol's rules for training or for evaluation hold for Atari; a Gymnasium id keeps its
    own. Raises UnknownGameError, with the nearest names of both kinds, and ValueError for an
    environment with unsupported actions or observations.
    """
    if is_atari(game):
        return AtariVector(
            game,
            num_envs,
            seed=seed,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=protocol.full_action_space,
            noop_max=protocol.train_noop_max if training else protocol.eval_noop_max,
            max_frames_per_game=protocol.train_max_frames if training else protocol.eval_max_frames,
            num_threads=num_threads,
        )
    _check_registered(game)
    try:
        return GymnasiumVector(game, num_envs, seed=seed)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{game} cannot be made: {reason}") from None


def evaluation_epsilon(game: str, protocol: Protocol) -> float | None:
    """Share of random actions when a game is scored; None: the run's final epsilon.

    The protocol's rule holds for Atari. A Gymnasium environment is played without random actions.
    """
    return protocol.eval_epsilon if is_atari(game) else 0.0


def random_and_human(game: str, human_table: str) -> tuple[float | None, float | None]:
    """The scores of random play and of the table's human that a game's scores stand between.

    None where there is none: outside the 57 games, and for games that a table leaves out.
    """
    scores = reference_scores(game) if is_atari(game) else None
    return (None, None) if scores is None else (scores.random, scores.human(human_table))


def _is_theirs(env_id: str) -> bool:
    """Registered with Gymnasium, and not by the emulator."""
    spec = gymnasium.registry.get(env_id)
    return spec is not None and not str(spec.entry_point).startswith("ale_py.")


def _check_registered(game: str) -> None:
    module, colon, env_id = game.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)  # which registers its environments
        except (ImportError, TypeError, ValueError) as error:
            raise UnknownGameError(f"cannot import the module of {shown(game)}: {error}") from None
    if _is_theirs(env_id):
        return
    theirs = [name for name in gymnasium.registry if _is_theirs(name)]
    nearest = difflib.get_close_matches(env_id[:80], theirs, cutoff=0.7)
    if not colon:
        _refuse_unplayable(game)
        nearest = nearest_games(game) + nearest
    raise UnknownGameError(f"unknown game {shown(game)}{did_you_mean(nearest)}")


def _refuse_unplayable(game: str) -> None:
    try:
        canonical_game(game)
    except UnplayableGameError:
        raise
    except UnknownGameError:
        pass
