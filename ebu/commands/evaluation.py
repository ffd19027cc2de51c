"""Evaluate the agent of a run: load it, play it under a protocol, and write the result."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from agents import Precision, TrainedAgent, load_agent
from agents.foreign.flags import PolicyFlags
from agents.foreign.formats import is_foreign
from ebu.commands.evaluate_arguments import EvaluateConfig, check
from ebu.commands.game_names import about_game
from ebu.commands.policies import load_policy
from ebu.commands.reporting.scores import write_evaluation
from ebu.commands.scoring import evaluator_for, variant_of
from ebu.commands.showing import check_display, check_pictures, film_best, open_window
from ebu.commands.trust import check_trust
from ebu.errors import EbuError, UsageError
from ebu.evaluation import Evaluation, Evaluator, random_play, seeds_of
from ebu.interfaces import VectorEnvironment
from ebu.run.directory import read_config, require
from ebu.run.files import as_json, write_whole
from ebu.run.machine import (
    automatic_threads,
    device_named,
    has_bfloat16,
    has_tf32,
    prepare_torch,
    torch_threads,
)
from ebu.run.progress import progress_bar
from ebu.run.settings import check_settings, one_of
from ebu.run.signals import raise_on_interrupt
from envs import EnvironmentFault, UnknownGameError
from envs.protocols import PROTOCOLS, Protocol


@dataclass(frozen=True)
class Rules:
    """How the agent of a run is scored.

    | field | meaning |
    | --- | --- |
    | settings | the run's |
    | protocol_epsilon | share of random actions that the protocol asks for |
    | precision | arithmetic of the agent's network; None for random play |
    """

    settings: dict[str, Any]
    game: str
    protocol: Protocol
    protocol_epsilon: float
    precision: Precision | None
    evaluator: Evaluator


def run(
    config: EvaluateConfig, announce: Callable[[dict[str, Any]], None] = lambda record: None
) -> dict[str, Any]:
    """Evaluate as configured, write the result, announce it, film the best game, and return it.

    Raises `UsageError` for a request that cannot be met, before anything is played, and `EbuError`
    for a run without whole, finite weights, and for an environment that fails.
    """
    check_settings(config)
    check(config)
    raise_on_interrupt()
    foreign = load_foreign(config)
    rules = rules_of(config, None if foreign is None else foreign.config["settings"])
    agent = foreign if rules.precision is not None else None
    if rules.precision is not None and agent is None:
        agent = load_agent(config.run_dir, config.weights, rules.evaluator.device, rules.precision)
        for line in agent.warnings:
            print(f"warning: {line}", file=sys.stderr)
    try:
        env = rules.evaluator.make_env()
    except (UnknownGameError, ValueError) as error:
        raise UsageError(
            f"{config.run_dir} was trained on {rules.game}: {about_game(error)}"
        ) from error
    with contextlib.closing(env):
        played = play(config, rules, agent, env)
        record = record_of(config, rules, agent, played)
        try:
            if foreign is None:
                write_evaluation(config.run_dir, record)
        except EbuError as error:
            print(f"warning: the result is not in {config.run_dir}: {error}", file=sys.stderr)
        try:
            if config.json is not None:
                write_whole(config.json, as_json(record))
        finally:
            announce(record)
        if config.video is not None:
            film_best(config.video, env, played)
    return record


def play(
    config: EvaluateConfig, rules: Rules, agent: TrainedAgent | None, env: VectorEnvironment
) -> Evaluation:
    """Play all games, shown in a window if asked for."""
    if agent is not None:
        check_fits(agent, env, config.run_dir, rules)
    if config.video is not None or config.render:
        check_pictures(env)
    if config.render:
        check_display()
    with contextlib.ExitStack() as closing:
        window = open_window(env, rules.game) if config.render else None
        if window is not None:
            closing.callback(window.close)
        progress = closing.enter_context(progress_bar("", rules.evaluator.episodes, "games"))
        try:
            played = rules.evaluator.play(
                random_play(env.num_actions) if agent is None else agent.choose,
                env=env,
                progress=progress,
                watch=None if window is None else window.watch,
            )
        except EnvironmentFault as fault:
            raise EbuError(f"{fault}; no score: --seed plays other games") from fault
    assert played is not None
    return played


def load_foreign(config: EvaluateConfig) -> TrainedAgent | None:
    """The policy from elsewhere that is to be scored; None where it is a run's agent.

    Raises as `load_policy`.
    """
    given = PolicyFlags(
        game=config.game, action_set=config.action_set, unit_pixels=config.unit_pixels
    )
    if not is_foreign(config.run_dir):
        given.check_unused(config.run_dir)
        return None
    return load_policy(
        config.run_dir,
        replace(given, protocol=config.protocol),
        device_named(config.device),
        weights=config.weights,
    )


def rules_of(config: EvaluateConfig, settings: dict[str, Any] | None = None) -> Rules:
    """The rules that a configuration and the run's own settings give; prepares torch for them.

    | argument | meaning |
    | --- | --- |
    | config | within its ranges |
    | settings | those of a policy that is no run's |
    """
    if settings is None:
        settings = read_config(config.run_dir)["settings"]
        check_trust(config.run_dir, settings, config.trust_env)
    require(config.run_dir, settings, "game", "protocol", "epsilon_end", "random_start_actions")
    game, name = str(settings["game"]), config.protocol or str(settings["protocol"])
    one_of("--protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    final_epsilon = float(settings["epsilon_end"])
    device = device_named(config.device)
    threads = config.threads or automatic_threads(device)
    prepare_torch(device, torch_threads(config.threads, threads, device))
    variant = variant_of(settings)
    if config.max_steps is not None:
        variant = replace(variant, eval_max_steps=config.max_steps)
    evaluator = evaluator_for(
        game,
        protocol,
        seeds=seeds_of(config.seed),
        episodes=protocol.eval_episodes if config.episodes is None else config.episodes,
        num_envs=1 if config.render and not config.num_envs else config.num_envs or None,
        epsilon=config.epsilon,
        final_epsilon=final_epsilon,
        random_start_actions=int(settings["random_start_actions"]),
        threads=threads,
        device=device,
        variant=variant,
    )
    if evaluator.num_envs > evaluator.episodes:
        raise UsageError(
            f"--num-envs {config.num_envs}: each environment needs a game, and --episodes is "
            f"{evaluator.episodes}"
        )
    return Rules(
        settings=settings,
        game=game,
        protocol=protocol,
        protocol_epsilon=protocol.evaluation_epsilon(game, final_epsilon),
        precision=None if config.random else precision_of(config.run_dir, settings, device),
        evaluator=evaluator,
    )


def precision_of(run_dir: Path, settings: dict[str, Any], device: torch.device) -> Precision:
    """The arithmetic that the run was trained in, float32 for tf32 where the device has none.

    Runs of earlier versions know float32 alone.
    """
    precision = settings.get("precision", "float32")
    if precision not in get_args(Precision):
        raise EbuError(f"{run_dir}'s config.json says precision {precision!r}: restore it")
    if precision == "bfloat16" and not has_bfloat16(device):
        print(
            f"warning: {run_dir} was trained in bfloat16, which is emulated here: slower, and its "
            "last bits may differ",
            file=sys.stderr,
        )
    found: Precision = precision
    return "float32" if precision == "tf32" and not has_tf32(device) else found


def check_fits(agent: TrainedAgent, env: VectorEnvironment, run_dir: Path, rules: Rules) -> None:
    """Raise `UsageError` where the agent cannot play these environments."""
    if env.num_actions != agent.num_actions:
        raise UsageError(
            f"--protocol {rules.protocol.name} plays {env.num_actions} actions, the agent in "
            f"{run_dir} knows {agent.num_actions}: evaluate it under --protocol "
            f"{rules.settings['protocol']}, as it was trained"
        )
    trained = agent.config["environment"]
    here = getattr(env, "observation", "")
    if trained.get("observation", here) != here:
        raise UsageError(
            f"{rules.game} shows {here} here, the agent in {run_dir} was trained on "
            f"{trained['observation']}"
        )
    if list(env.frame_shape) != list(trained["frame_shape"]) or env.stack != trained["stack"]:
        raise UsageError(
            f"{rules.game} shows {env.stack} frames of {list(env.frame_shape)} here, the agent in "
            f"{run_dir} was trained on {trained['stack']} of {list(trained['frame_shape'])}"
        )


def record_of(
    config: EvaluateConfig, rules: Rules, agent: TrainedAgent | None, played: Evaluation
) -> dict[str, Any]:
    """All that is known of an evaluation, in JSON values."""
    evaluator, protocol = rules.evaluator, rules.protocol
    own_steps = rules.settings.get("eval_max_steps")
    return {
        "game": rules.game,
        "protocol": protocol.name,
        # Machado et al. (2018) score training games; games played afterwards are another thing.
        "separate_evaluation": protocol.name == "machado",
        "epsilon": 1.0 if agent is None else evaluator.epsilon,
        **evaluator.summarise(played),
        "random_score": evaluator.random_score,
        "human_score": evaluator.human_score,
        "policy": "random" if agent is None else "agent",
        "protocol_epsilon": rules.protocol_epsilon,
        "protocol_games": protocol.eval_episodes,
        # None: cut as in the run's own evaluations.
        "max_steps": None if config.max_steps == own_steps else config.max_steps,
        "precision": rules.precision,
        "weights": None if agent is None else config.weights,
        "trained_frames": None if agent is None else agent.frames,
        "teacher": None if agent is None else rules.settings.get("teacher"),
        "from": None if agent is None else rules.settings.get("from"),
        "run_dir": str(config.run_dir),
        "seed": config.seed,
        "num_envs": evaluator.num_envs,
        "returns": played.returns.tolist(),
        "lengths_frames": played.lengths_frames.tolist(),
    }
