"""The environments that a run trains in: their protocol, and what its config.json says of them."""

from dataclasses import replace
from typing import Any

from ebu.commands.presets import TrainConfig
from ebu.commands.scoring import describe, env_maker
from ebu.errors import EbuError, UsageError
from ebu.run.progress import MANY, say
from ebu.run.ranks import SINGLE, Ranks
from envs import EnvironmentFault, Variant, VectorEnvironment, is_atari
from envs.protocols import PROTOCOLS, Protocol

EMULATOR_SECONDS = 0.2
"""For an emulator to load its game; they do so one after the other."""
DIFFERS = "differs"
"""In config.json what differs between two copies of a game, where something does."""


def protocol_of(config: TrainConfig) -> Protocol:
    """The protocol of a run, with what its settings change in training."""
    protocol = replace(PROTOCOLS[config.protocol], train_noop_max=config.train_noops)
    if config.life_loss_ends_segment is not None:
        protocol = replace(protocol, life_loss_ends_segment=config.life_loss_ends_segment)
    return protocol


def make_env(
    config: TrainConfig,
    game: str,
    protocol: Protocol,
    threads: int,
    variant: Variant,
    *,
    seed: int,
    ranks: Ranks = SINGLE,
) -> VectorEnvironment:
    """The environments to train in: a rank's part of them.

    Raises `UsageError` where they cannot be made.
    """
    num_envs = ranks.part_of(config.num_envs, "--num-envs")
    if is_atari(game) and num_envs >= MANY:
        seconds = num_envs * EMULATOR_SECONDS
        say(f"starting {num_envs} emulators, one by one: {seconds:.0f} s or more")
    try:
        maker = env_maker(game, protocol, threads=threads, training=True, variant=variant)
        env = maker(num_envs, seed)
    except ValueError as error:
        raise UsageError(f"--game: {error}") from error
    step_frames = config.num_envs * env.frames_per_step
    if config.frames < step_frames:
        env.close()
        raise UsageError(
            f"--frames {config.frames} is less than one step of --num-envs {config.num_envs}, "
            f"{step_frames} frames: raise --frames or lower --num-envs"
        )
    return env


def description_of(
    env: VectorEnvironment, earlier: dict[str, Any] | None, game: str
) -> dict[str, Any]:
    """What config.json says of the environments.

    Before a run's first step two copies of its game are compared; a game that differs is said to
    be.
    """
    description = describe(env)
    before = {} if earlier is None else earlier["environment"]
    # Runs of earlier versions have neither.
    if earlier is not None and "observation" not in before:
        del description["observation"]
    if earlier is not None:
        return {**description, **{name: before[name] for name in (DIFFERS,) if name in before}}
    try:
        difference = env.difference()
    except EnvironmentFault as fault:
        raise EbuError(str(fault)) from fault
    if difference is not None:
        description[DIFFERS] = difference
        say(
            f"warning: {game} is no function of its seed and actions ({difference} between two "
            "copies): it is trained, but no run can be repeated, and only --fresh-games resumes it"
        )
    return description
