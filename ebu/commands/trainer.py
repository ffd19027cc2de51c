"""Put a training run together: environments, replay memory, agent, logs and checkpoints."""

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents import build_agent, build_learner
from ebu.commands.presets import TrainConfig, with_network
from ebu.commands.rank_parts import build_replay, check_gpus, check_ranks, of_rank, part_of_rank
from ebu.commands.resuming import newest_checkpoint, resume
from ebu.commands.run_logs import open_logs
from ebu.commands.scoring import evaluator_for, variant_of
from ebu.commands.training_environments import description_of, make_env, protocol_of
from ebu.commands.training_evaluation import TrainingEvaluation
from ebu.commands.warm_start import start_from
from ebu.errors import UsageError
from ebu.evaluation import seeds_at
from ebu.run.checkpoint import load_part
from ebu.run.directory import (
    CHECKPOINTS,
    CONFIG,
    NOT_PART_OF_THE_RUN,
    directory_name,
    identity_of,
    open_run_directory,
    read_earlier_config,
)
from ebu.run.machine import Machine, choose_machine, choose_num_envs, prepare_torch
from ebu.run.profiling import Profile
from ebu.run.progress import say
from ebu.run.ranks import SINGLE, Ranks
from ebu.run.settings import flat
from ebu.training import Trainer
from envs import is_atari
from envs.games import canonical_game

MOST_EVALUATION_ENVS = 32


def build_trainer(config: TrainConfig, ranks: Ranks = SINGLE) -> Trainer:
    """Open the run directory and put a run together; an existing run is resumed.

    Of several ranks each has its part of the environments, the replay memory and the minibatch;
    the first opens the run directory and its logs.

    Raises `UsageError` if the run cannot be started here, `EbuError` if its checkpoints are
    damaged.
    """
    game = canonical_game(config.game) if is_atari(config.game) else config.game
    run_dir = config.run_dir or Path(
        "runs", f"{directory_name(game)}-{config.agent}-{config.preset}-seed{config.seed}"
    )
    earlier = ranks.from_first(lambda: read_earlier_config(run_dir))
    with contextlib.ExitStack() as on_failure:
        with ranks.together():
            check_ranks(config, run_dir, earlier, ranks)
            machine = _prepare_machine(config, earlier, ranks)
            num_envs = choose_num_envs(config.num_envs, machine.device, earlier)
            config = replace(config, num_envs=num_envs)
            own = part_of_rank(config, ranks)
            protocol = protocol_of(config)
            weights_rng, *seeds = np.random.SeedSequence(config.seed).spawn(4)
            exploration_rng, drawing_rng, env_rng = (
                np.random.default_rng(of_rank(seed, ranks)) for seed in seeds
            )
            variant = variant_of(flat(config))
            seed = int(env_rng.integers(2**31))
            env = make_env(config, game, protocol, machine.threads, variant, seed=seed, ranks=ranks)
            on_failure.callback(env.close)
            config = with_network(config, env.frame_shape)
            replay = build_replay(own.replay_capacity, env, machine.device, ranks)
            learner = build_learner(
                own.method,
                config.learner,
                stack=env.stack,
                frame_shape=env.frame_shape,
                num_actions=env.num_actions,
                device=machine.device,
                precision=machine.precision,
                rng=np.random.default_rng(weights_rng),
                ranks=ranks,
            )
            agent = build_agent(own.method, learner, drawing_rng)
            environment = description_of(env, earlier, game)
            if config.init_from is not None and not (run_dir / CHECKPOINTS).is_dir():
                start_from(learner, config.init_from, config.learner.network, environment)
        description = {
            "settings": {**flat(config), "game": game, **machine.settings()},
            "automatic": machine.automatic,
            "environment": environment,
            **({} if ranks.is_single else {"ranks": ranks.world_size}),
        }
        identity = identity_of(description)
        students = None
        if config.distill:
            from agents.distillation.online import Students

            students = Students(config.distill, agent, description, run_dir, seed=config.seed)
        lock = checkpoint = monitor = None
        with ranks.together():
            if ranks.is_first:
                lock = on_failure.enter_context(
                    open_run_directory(
                        run_dir,
                        description,
                        may_change=NOT_PART_OF_THE_RUN | set(machine.automatic),
                        may_grow=frozenset({"frames"}),
                    )
                )
                checkpoint = newest_checkpoint(
                    run_dir, identity, environment, fresh_games=config.fresh_games
                )
                if config.fresh_games and checkpoint is None:
                    say("warning: --fresh-games changes nothing in a run that starts")
                logs = open_logs(run_dir, checkpoint, config, description, asdict(protocol))
                monitor = on_failure.enter_context(contextlib.closing(logs))
        with ranks.together():
            _check_shared(run_dir, ranks)
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
                variant=variant,
            )
        checkpoint = load_part(run_dir / CHECKPOINTS, checkpoint, ranks)
        evaluation = TrainingEvaluation(
            evaluator,
            agent,
            monitor,
            config.seed,
            run_dir,
            near=config.num_envs * env.frames_per_step,
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
            evaluate=evaluation.play,
            film=evaluation.film,
            close_evaluation=evaluation.close,
            run_dir=run_dir,
            lock=lock,
            identity=identity,
            profile=Profile(run_dir / "profile") if config.profile and ranks.is_first else None,
            distiller=students,
            ranks=ranks,
        )
        if checkpoint is not None:
            resume(trainer, checkpoint, fresh_games=config.fresh_games)
        learner.share()
        on_failure.pop_all()
    return trainer


def _prepare_machine(config: TrainConfig, earlier: dict[str, Any] | None, ranks: Ranks) -> Machine:
    """Choose the device, the threads and the precision of a rank, and prepare torch for them."""
    machine = choose_machine(
        config.device, config.threads, config.precision, earlier, processes=ranks.local_world_size
    )
    check_gpus(machine.device, ranks)
    for line in machine.warnings:
        say(f"warning: {line}")
    if getattr(config.method, "mix_segments", ranks.world_size) < ranks.world_size:
        say(
            f"each of {ranks.world_size} processes trains on a segment of its own, as with "
            f"--mix-segments {ranks.world_size}"
        )
    prepare_torch(
        machine.device,
        machine.torch_threads,
        precision=machine.precision,
        autotune=True,
        deterministic=config.deterministic,
    )
    return machine


def _check_shared(run_dir: Path, ranks: Ranks) -> None:
    """Raise `UsageError` where a rank does not see the run directory that the first has made."""
    if not ranks.is_first and not (run_dir / CONFIG).is_file():
        raise UsageError(
            f"{run_dir} is not the same directory for every process: choose a --run-dir on a file "
            "system that all machines share"
        )
