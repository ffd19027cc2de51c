"""Atari games and Gymnasium environments behind one vector interface.

`make_vector` builds either from a name; importing the package registers `ebu/Chain-v0` and
`ebu/Maze-v0` with Gymnasium.
"""

import difflib
import importlib
import warnings
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

import gymnasium

import envs.chain
import envs.maze  # noqa: F401 (both register their environment)
from envs.atari import FRAME_SKIP, AtariVector
from envs.boundary import PIP_INSTALL, Recipe, parse_args, reason
from envs.faults import EnvironmentFault
from envs.games import (
    NoSimilarGameError,
    UnknownGameError,
    UnplayableGameError,
    canonical_game,
    is_atari,
    nearest_games,
    quote,
    registered_elsewhere,
    unknown_game,
)
from envs.gymnasium_vector import GymnasiumVector
from envs.protocols import Protocol
from envs.vector import ReplayMismatchError, VectorEnvironment, VectorStep

__all__ = [
    "MOST_STEPS",
    "ActionSet",
    "AtariVector",
    "EnvironmentFault",
    "GymnasiumVector",
    "NoSimilarGameError",
    "ReplayMismatchError",
    "UnknownGameError",
    "Variant",
    "VectorEnvironment",
    "VectorStep",
    "check_game",
    "is_atari",
    "make_vector",
]


ENDLESS_STEPS = 1_000
"""Steps after which an evaluation game is truncated that has no limit of its own: ten such games of
an agent that runs in a circle then take a tenth of the training between two evaluations."""


MOST_STEPS = (2**31 - 1) // FRAME_SKIP
"""Steps after which an evaluation game may be truncated: the emulator counts frames in 32 bits."""


ActionSet = Literal["minimal", "full"]


@dataclass(frozen=True)
class Variant:
    """What a run changes in its environments.

    | field | meaning |
    | --- | --- |
    | env_args | NAME=VALUE each: arguments of a Gymnasium environment's constructor |
    | env_wrappers | `module:Wrapper` each, the innermost first |
    | eval_max_steps | steps after which an evaluation game is truncated; None: as it is registered,
      or as the protocol says |
    | action_set | of Atari: "full", all 18 actions, "minimal", those the game uses; None: as the
      protocol says |
    """

    env_args: tuple[str, ...] = ()
    env_wrappers: tuple[str, ...] = ()
    eval_max_steps: int | None = None
    action_set: ActionSet | None = None


AS_REGISTERED = Variant()


def make_vector(
    game: str,
    num_envs: int,
    *,
    seed: int,
    protocol: Protocol,
    training: bool,
    num_threads: int = 0,
    variant: Variant = AS_REGISTERED,
) -> VectorEnvironment:
    """Make N environments of an Atari game or a Gymnasium id (`CartPole-v1`, `module:MyEnv-v0`).

    The protocol's rules for training or evaluation apply to Atari; a Gymnasium environment keeps
    its own, and an evaluation game without an end is truncated. Raises UnknownGameError, with the
    nearest names of both kinds, and ValueError, in one line, for an environment that cannot be made
    or has unsupported actions or observations.
    """
    max_steps = None if training else variant.eval_max_steps
    if max_steps is not None and not 1 <= max_steps <= MOST_STEPS:
        raise ValueError(
            f"evaluation games are cut after 1 to {MOST_STEPS:,} steps, not after {max_steps:,}"
        )
    if is_atari(game):
        if variant.env_args or variant.env_wrappers:
            raise ValueError(
                f"{game} is played on the emulator, without --env-args and --env-wrappers; to have "
                "them, play it through Gymnasium, by a name such as gymnasium:ALE/Pong-v5"
            )
        frames = protocol.train_max_frames if training else protocol.eval_max_frames
        made: VectorEnvironment = AtariVector(
            game,
            num_envs,
            seed=seed,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=(
                protocol.full_action_space
                if variant.action_set is None
                else variant.action_set == "full"
            ),
            noop_max=protocol.train_noop_max if training else protocol.eval_noop_max,
            max_frames_per_game=frames if max_steps is None else max_steps * FRAME_SKIP,
            num_threads=num_threads,
        )
    else:
        made = _make_gymnasium(game, num_envs, seed, training, max_steps, variant)
    made.watchdog.name += " in training" if training else " in an evaluation"
    return made


def _make_gymnasium(
    game: str, num_envs: int, seed: int, training: bool, max_steps: int | None, variant: Variant
) -> GymnasiumVector:
    check_game(game)
    recipe = Recipe(
        game,
        parse_args(variant.env_args),
        variant.env_wrappers,
        max_steps=max_steps,
        endless_steps=None if training else ENDLESS_STEPS,
    )
    try:
        return GymnasiumVector(recipe, num_envs, seed=seed)
    except EnvironmentFault as fault:
        raise ValueError(str(fault)) from None


def check_game(game: str) -> None:
    """Raise UnknownGameError, with the nearest names, for what `make_vector` cannot find."""
    if is_atari(game):
        return
    module, colon, env_id = game.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)  # registers its environments
            if env_id not in gymnasium.registry:
                _load_plugins(module)
        except Exception as error:  # a module's own code runs
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
            advice = f"; if a package has it: {PIP_INSTALL} {module}" if is_missing else ""
            raise UnknownGameError(
                f"cannot import the module of {quote(game)}: {reason(error)}{advice}"
            ) from None
    # With its module, a name is played through Gymnasium, an Atari game too.
    if env_id in gymnasium.registry if colon else registered_elsewhere(env_id):
        return
    others = [name for name in gymnasium.registry if registered_elsewhere(name)]
    nearest = difflib.get_close_matches(env_id[:80], others, cutoff=0.7)
    if not colon:
        _reject_unplayable(game)
        nearest = nearest_games(game) + nearest
    raise unknown_game(game, nearest)


def _load_plugins(module: str) -> None:
    """Register a package's plugins, as Gymnasium did by itself before version 1.0."""
    package = module.partition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the import has registered already
        for plugin in entry_points(group="gymnasium.envs"):
            if plugin.module.partition(".")[0] == package:
                plugin.load()()


def _reject_unplayable(game: str) -> None:
    try:
        canonical_game(game)
    except UnplayableGameError:
        raise
    except UnknownGameError:
        pass
