"""Where agents live: Atari games and Gymnasium environments behind one interface.

`make_vector` builds either from a name. Rows, seeds and restore: `envs.vector`.
"""

import difflib

import gymnasium

from envs.atari import AtariVector
from envs.games import (
    UnknownGameError,
    canonical_game,
    did_you_mean,
    nearest_games,
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
    "is_atari",
    "make_vector",
]


def is_atari(game: str) -> bool:
    """Whether `make_vector` plays this name on the emulator.

    An id that somebody registered with Gymnasium is theirs, even if it is called like a game.
    """
    if ":" in game or _registered_elsewhere(game):
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
    try:
        gymnasium.spec(game)
    except ImportError as error:
        raise UnknownGameError(f"cannot import the module of {shown(game)}: {error}") from None
    except gymnasium.error.Error:
        raise _unknown(game) from None
    try:
        return GymnasiumVector(game, num_envs, seed=seed)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"{game} cannot be made: {error}") from None


def _registered_elsewhere(game: str) -> bool:
    spec = gymnasium.registry.get(game)
    return spec is not None and not str(spec.entry_point).startswith("ale_py.")


def _unknown(game: str) -> UnknownGameError:
    try:
        canonical_game(game)
    except UnknownGameError as error:
        others = [
            name for name in gymnasium.registry if not name.startswith("ALE/") and ":" not in name
        ]
        nearest = nearest_games(game) + difflib.get_close_matches(game[:80], others, cutoff=0.7)
        if nearest:
            return UnknownGameError(f"unknown game {shown(game)}{did_you_mean(nearest)}")
        return error
    return UnknownGameError(f"unknown game {shown(game)}")
