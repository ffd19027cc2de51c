"""Atari games and Gymnasium environments behind one vector interface.

`make_vector` builds either from a name; importing the package registers `ebu/Chain-v0` and
`ebu/Maze-v0` with Gymnasium.
"""

import difflib
import importlib

import gymnasium

import envs.chain
import envs.maze  # noqa: F401 (both register their environment)
from envs.atari import AtariVector
from envs.games import (
    UnknownGameError,
    UnplayableGameError,
    canonical_game,
    did_you_mean,
    is_atari,
    nearest_games,
    quote,
    reference_scores,
    registered_elsewhere,
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
    "check_game",
    "is_atari",
    "make_vector",
    "random_and_human",
]


def make_vector(
    game: str,
    num_envs: int,
    *,
    seed: int,
    protocol: Protocol,
    training: bool,
    num_threads: int = 0,
) -> VectorEnvironment:
    """Make N environments of an Atari game or a Gymnasium id (`CartPole-v1`, `module:MyEnv-v0`).

    The protocol's rules for training or evaluation apply to Atari; a Gymnasium environment keeps
    its own. Raises UnknownGameError, with the nearest names of both kinds, and ValueError for an
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
    check_game(game)
    try:
        return GymnasiumVector(game, num_envs, seed=seed)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{game} cannot be made: {reason}") from None


def random_and_human(game: str, human_table: str) -> tuple[float | None, float | None]:
    """The scores of random play and of the table's human, which normalise the scores of a game.

    None where there is none: outside the 57 games, and for games that a table leaves out.
    """
    scores = reference_scores(game) if is_atari(game) else None
    return (None, None) if scores is None else (scores.random, scores.human(human_table))


def check_game(game: str) -> None:
    """Raise UnknownGameError, with the nearest names, for what `make_vector` cannot find."""
    if is_atari(game):
        return
    module, colon, env_id = game.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)  # registers its environments
        except (ImportError, TypeError, ValueError) as error:
            raise UnknownGameError(f"cannot import the module of {quote(game)}: {error}") from None
    if registered_elsewhere(env_id):
        return
    others = [name for name in gymnasium.registry if registered_elsewhere(name)]
    nearest = difflib.get_close_matches(env_id[:80], others, cutoff=0.7)
    if not colon:
        _reject_unplayable(game)
        nearest = nearest_games(game) + nearest
    raise UnknownGameError(f"unknown game {quote(game)}{did_you_mean(nearest)}")


def _reject_unplayable(game: str) -> None:
    try:
        canonical_game(game)
    except UnplayableGameError:
        raise
    except UnknownGameError:
        pass
