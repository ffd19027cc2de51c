"""Put a training run together: environments, replay memory, agent, logs and checkpoints."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from agents import Agent, build_agent, build_learner
from ebu.commands.presets import TrainConfig
from ebu.commands.run_logs import open_logs
from ebu.commands.scoring import env_maker, evaluator_for
from ebu.errors import EbuError, UsageError
from ebu.evaluation import Evaluator, seeds_at
from ebu.frames import torch_dtype
from ebu.interfaces import VectorEnvironment
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest
from ebu.run.directory import (
    NOT_PART_OF_THE_RUN,
    directory_name,
    identity_of,
    open_run_directory,
    read_earlier_config,
)
from ebu.run.logs import Monitor
from ebu.run.machine import choose_machine, choose_num_envs, prepare_torch
from ebu.run.profiling import Profile
from ebu.run.progress import say
from ebu.run.settings import flat
from ebu.training import Trainer
from envs import ReplayMismatchError, is_atari
from envs.film import CannotFilmError, film
from envs.games import canonical_game
from envs.protocols import PROTOCOLS, Protocol

MOST_EVALUATION_ENVS = 32
# Emulators load their game one after the other, in one call that shows no progress.
MANY_ENVS, EMULATOR_SECONDS = 16, 0.2
FILM_STEPS, FILM_EVERY, FILM_FPS = 1_000, 4, 15


def build_trainer(config: TrainConfig) -> Trainer:
    """Open the run directory and put a run together; an existing run is resumed.

    Raises `UsageError` if the run cannot be started here, `EbuError` if its checkpoints are
    damaged.
    """
    game = canonical_game(config.game) if is_atari(config.game) else config.game
    run_dir = config.run_dir or Path(
        "runs", f"{directory_name(game)}-{config.agent}-{config.preset}-seed{config.seed}"
    )
    before = read_earlier_config(run_dir)
    machine = choose_machine(config.device, config.threads, config.precision, before)
    config = replace(config, num_envs=choose_num_envs(config.num_envs, machine.device, before))
    for line in machine.warnings:
        say(f"warning: {line}")
    prepare_torch(
        machine.device,
        machine.torch_threads,
        precision=machine.precision,
        autotune=True,
        deterministic=config.deterministic,
    )
    protocol = protocol_of(config)
    to_seed = np.random.SeedSequence(config.seed)
    weights_rng, exploration_rng, drawing_rng, env_rng = (
        np.random.default_rng(child) for child in to_seed.spawn(4)
    )
    env = make_env(config, game, protocol, machine.threads, seed=int(env_rng.integers(2**31)))
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(env.close)
        replay = EpisodicReplay(
            capacity=config.replay_capacity,
            num_streams=config.num_envs,
            frame_shape=env.frame_shape,
            frame_dtype=torch_dtype(env.frame_dtype),
            stack=env.stack,
            device=machine.device,
        )
        learner = build_learner(
            config.method,
            config.learner,
            stack=env.stack,
            frame_shape=env.frame_shape,
            num_actions=env.num_actions,
            device=machine.device,
            precision=machine.precision,
            rng=weights_rng,
        )
        agent = build_agent(config.method, learner, drawing_rng)
        description = {
            "settings": {**flat(config), "game": game, **machine.settings()},
            "automatic": machine.automatic,
            "environment": description_of(env),
        }
        students = None
        if config.distill:
            from agents.distillation.online import Students

            students = Students(config.distill, agent, description, run_dir, seed=config.seed)
        lock = on_failure.enter_context(
            open_run_directory(
                run_dir,
                description,
                may_change=NOT_PART_OF_THE_RUN | set(machine.automatic),
                may_grow=frozenset({"frames"}),
            )
        )
        identity = identity_of(description)
        checkpoint = load_latest(run_dir / "checkpoints", run=identity)
        monitor = on_failure.enter_context(
            contextlib.closing(
                open_logs(run_dir, checkpoint, config, description, asdict(protocol))
            )
        )
        evaluator = evaluator_for(
            game,
            protocol,
            seeds=seeds_at(config.seed, 0),
            episodes=config.loop.eval_episodes,
            num_envs=min(config.loop.eval_episodes, MOST_EVALUATION_ENVS),
            final_epsilon=config.exploration.epsilon_end,
            random_start_actions=config.exploration.random_start_actions,
            threads=machine.threads,
            device=machine.device,
        )
        trainer = Trainer(
            config.loop,
            gamma=config.method.gamma,
            clip_rewards=config.method.clip_rewards,
            life_loss_ends_segment=protocol.life_loss_ends_segment,
            env=env,
            replay=replay,
            agent=agent,
            exploration=config.exploration,
            rng=exploration_rng,
            monitor=monitor,
            evaluate=TrainingEvaluation(evaluator, agent, monitor, config.seed),
            run_dir=run_dir,
            lock=lock,
            identity=identity,
            profile=Profile(run_dir / "profile") if config.profile else None,
            distiller=students,
        )
        if checkpoint is not None:
            say(f"{run_dir}: replaying the games up to frame {checkpoint.state['frames']:,}")
            try:
                trainer.load(checkpoint)
            except ReplayMismatchError as error:
                raise EbuError(str(error)) from error
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
        on_failure.pop_all()
    return trainer


def protocol_of(config: TrainConfig) -> Protocol:
    """The protocol of a run, with what its settings change in training."""
    protocol = replace(PROTOCOLS[config.protocol], train_noop_max=config.train_noops)
    if config.life_loss_ends_segment is not None:
        protocol = replace(protocol, life_loss_ends_segment=config.life_loss_ends_segment)
    return protocol


def make_env(
    config: TrainConfig, game: str, protocol: Protocol, threads: int, *, seed: int
) -> VectorEnvironment:
    """The environments to train in. Raises `UsageError` where they cannot be made."""
    if is_atari(game) and config.num_envs >= MANY_ENVS:
        seconds = config.num_envs * EMULATOR_SECONDS
        say(f"starting {config.num_envs} emulators, one by one: {seconds:.0f} s or more")
    try:
        env = env_maker(game, protocol, threads=threads, training=True)(config.num_envs, seed)
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


def description_of(env: VectorEnvironment) -> dict[str, Any]:
    """What config.json says of the environments."""
    return {
        "num_actions": env.num_actions,
        "stack": env.stack,
        "frame_shape": list(env.frame_shape),
        "frame_dtype": str(np.dtype(env.frame_dtype)),
        "frames_per_step": env.frames_per_step,
    }


class TrainingEvaluation:
    """Scores the agent in training, and shows the start of the best game in TensorBoard."""

    def __init__(self, evaluator: Evaluator, agent: Agent, monitor: Monitor, seed: int) -> None:
        self.evaluator = evaluator
        self.agent = agent
        self.monitor = monitor
        self.seed = seed

    def __call__(self, frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Play the evaluation due at `frames`; None if told to stop before its end."""
        evaluator = replace(self.evaluator, seeds=seeds_at(self.seed, frames))
        with contextlib.closing(evaluator.make_env()) as env:
            played = evaluator.play(self.agent.play, env=env, should_stop=should_stop)
            if played is None:
                return None
            game = film(env, *played.recording(played.best_game))
            with contextlib.suppress(CannotFilmError):
                pictures = list(islice(game, 0, FILM_STEPS, FILM_EVERY))
                self.monitor.animation(frames, "eval/best_game", np.stack(pictures), fps=FILM_FPS)
        return evaluator.summarise(played)
