"""Load what a command line names as a policy: a run, or one from elsewhere with its game."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from agents import TrainedAgent, load_agent
from agents.foreign.flags import PolicyFlags
from agents.foreign.formats import is_foreign, read_policy
from agents.foreign.policy import Called, ForeignPolicy
from ebu.commands.game_names import about_game
from ebu.commands.presets import DEFAULT
from ebu.commands.scoring import describe, env_maker
from ebu.commands.trust import add_working_directory, modules_in
from ebu.errors import EbuError, UsageError
from ebu.frames import FrameStack, torch_dtype
from ebu.run.progress import say
from ebu.run.settings import one_of
from envs import EnvironmentFault, UnknownGameError, Variant, is_atari
from envs.games import canonical_game
from envs.protocols import PROTOCOLS


def load_policy(
    path: Path,
    flags: PolicyFlags,
    device: torch.device,
    *,
    weights: Literal["final", "best"] = "final",
    as_teacher: bool = False,
) -> TrainedAgent:
    """Load the agent of a run, or a policy from elsewhere that plays as one.

    A teacher must say whether its outputs are values or logits; to play, it need not.

    Raises `UsageError` for what is neither, and for flags that do not suit it; `EbuError` for a
    damaged run or file.
    """
    if not is_foreign(path):
        flags.check_unused(path)
        return load_agent(path, weights, device)
    if weights != "final":
        raise UsageError(f"--weights {weights} is for runs, and {path} is one policy: leave it out")
    # A function of the working directory is found, too.
    add_working_directory([str(path)])
    policy = read_policy(path, flags)
    if as_teacher and policy.outputs is None:
        raise UsageError(
            f"{path} does not say what it gives for each action: add --policy-outputs values, or "
            "logits"
        )
    return _in_its_game(path, policy, flags, device)


def _in_its_game(
    path: Path, policy: ForeignPolicy, flags: PolicyFlags, device: torch.device
) -> TrainedAgent:
    """A policy as an agent with the settings and the environment of its game."""
    game, protocol = _game_of(path, policy, flags), flags.protocol or policy.protocol or "paper"
    one_of("--protocol", protocol, PROTOCOLS)
    action_set: Any = flags.action_set or policy.action_set
    if action_set not in (None, "minimal", "full"):
        raise EbuError(f"{path} names its actions {action_set!a}: minimal and full are known")
    environment, states = _environment(game, protocol, action_set)
    if is_atari(game) and not action_set and environment["num_actions"] != policy.num_actions:
        # The other set, if it is of that size.
        other: Any = "minimal" if PROTOCOLS[protocol].full_action_space else "full"
        found, _ = _environment(game, protocol, other)
        if found["num_actions"] == policy.num_actions:
            action_set, environment = other, found
            say(f"{path}: {policy.num_actions} outputs are the {other} action set of {game}")
    if policy.num_actions not in (None, environment["num_actions"]):
        raise UsageError(
            f"{path} has {policy.num_actions} outputs and {game} {environment['num_actions']} "
            "actions here: name the game, or --action-set full or minimal, it was trained on"
        )
    try:
        network_name, network = policy.network(
            environment["stack"], tuple(environment["frame_shape"]), environment["num_actions"]
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if isinstance(network, Called):
        # What is wrong with its outputs is said before anything is written.
        network(states)
    outputs = policy.outputs or "logits"
    settings = {
        "game": game,
        "protocol": protocol,
        "action_set": action_set,
        "agent": policy.kind,
        "network": network_name or policy.kind,
        "outputs": outputs,
        "seed": 0,
        "epsilon_end": DEFAULT.exploration.epsilon_end,
        "random_start_actions": 0,
        "from": str(path),
        "digest": policy.digest,
    }
    frames = policy.steps * environment["frames_per_step"]
    config = {"settings": settings, "environment": environment}
    return TrainedAgent(network, outputs, config, frames, device, [])


def _game_of(path: Path, policy: ForeignPolicy, flags: PolicyFlags) -> str:
    game = flags.game or policy.game
    if game is None:
        raise UsageError(f"{path} does not say what it plays: add --game, such as --game pong")
    if flags.game is None and ":" in game and not is_atari(game):
        raise UsageError(
            f"{path} names the game {game!a}, whose module's code would be run: if you trust it, "
            "name it with --game"
        )
    add_working_directory(modules_in({"game": game}))
    return canonical_game(game) if is_atari(game) else game


def _environment(game: str, protocol: str, action_set: Any) -> tuple[dict[str, Any], Tensor]:
    """What config.json says of the environments of a game, and two of its first states."""
    make = env_maker(
        game,
        PROTOCOLS[protocol],
        threads=1,
        training=False,
        variant=replace(Variant(), action_set=action_set),
    )
    try:
        env = make(2, 0)
    except (UnknownGameError, ValueError) as error:
        raise UsageError(f"--game {game}: {about_game(error)}") from error
    with contextlib.closing(env):
        try:
            step = env.reset()
        except EnvironmentFault as fault:
            raise EbuError(f"--game {game}: {fault}") from fault
        dtype, cpu = torch_dtype(env.frame_dtype), torch.device("cpu")
        stacks = FrameStack(2, env.frame_shape, dtype, env.stack, cpu)
        return describe(env), stacks.push(step.frames, step.started)
