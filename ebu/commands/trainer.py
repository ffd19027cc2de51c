"""Put a training run together: environments, replay memory, agent, logs and checkpoints."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import build_agent, build_learner
from agents.architectures import GRID
from agents.registry import refuse_ranks
from agents.settings import SegmentConfig
from ebu.commands.presets import GYMNASIUM, TrainConfig
from ebu.commands.run_logs import open_logs
from ebu.commands.scoring import describe, env_maker, evaluator_for, variant_of
from ebu.commands.training_evaluation import TrainingEvaluation
from ebu.commands.warm_start import start_from
from ebu.errors import EbuError, UsageError
from ebu.evaluation import seeds_at
from ebu.frames import torch_dtype
from ebu.memory import refuse_oversized_replay
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import Checkpoint, load_latest, load_part
from ebu.run.directory import (
    CHECKPOINTS,
    CONFIG,
    NOT_PART_OF_THE_RUN,
    directory_name,
    identity_of,
    open_run_directory,
    read_earlier_config,
)
from ebu.run.machine import choose_machine, choose_num_envs, prepare_torch
from ebu.run.profiling import Profile
from ebu.run.progress import say
from ebu.run.ranks import SINGLE, Ranks
from ebu.run.settings import flat
from ebu.training import Trainer
from ebu.training_checkpoints import FRESH_GAMES
from envs import EnvironmentFault, ReplayMismatchError, Variant, VectorEnvironment, is_atari
from envs.games import canonical_game
from envs.protocols import PROTOCOLS, Protocol

MOST_EVALUATION_ENVS = 32
# Emulators load their game one after the other, in one call that shows no progress.
MANY_ENVS, EMULATOR_SECONDS = 16, 0.2
DIFFERS = "differs"
"""In config.json what differs between two copies of a game, where something does."""


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
            machine = choose_machine(
                config.device,
                config.threads,
                config.precision,
                earlier,
                processes=ranks.local_world_size,
            )
            check_gpus(machine.device, ranks)
            num_envs = choose_num_envs(config.num_envs, machine.device, earlier)
            config = replace(config, num_envs=num_envs)
            own = part_of_rank(config, ranks)
            for line in machine.warnings:
                say(f"warning: {line}")
            if not ranks.is_single and getattr(config.method, "mix_segments", 0) == 1:
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
            protocol = protocol_of(config)
            weights_rng, *seeds = np.random.SeedSequence(config.seed).spawn(4)
            exploration_rng, drawing_rng, env_rng = (
                np.random.default_rng(of_rank(seed, ranks)) for seed in seeds
            )
            variant = variant_of(flat(config))
            seed = int(env_rng.integers(2**31))
            env = make_env(config, game, protocol, machine.threads, variant, seed=seed, ranks=ranks)
            on_failure.callback(env.close)
            # Of all networks only this one takes small grids; a network that was chosen stays.
            if len(env.frame_shape) == 3 and config.learner.network == GYMNASIUM.learner.network:
                config = replace(config, learner=replace(config.learner, network=GRID))
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
                checkpoint = newest_checkpoint(run_dir, identity, fresh_games=config.fresh_games)
                if checkpoint is not None and DIFFERS in environment and not config.fresh_games:
                    raise UsageError(
                        f"{run_dir}: its game is no function of its seed and actions "
                        f"({environment[DIFFERS]} between two copies): add --fresh-games to resume "
                        "with new games"
                    )
                monitor = on_failure.enter_context(
                    contextlib.closing(
                        open_logs(run_dir, checkpoint, config, description, asdict(protocol))
                    )
                )
        with ranks.together():
            if not ranks.is_first and not (run_dir / CONFIG).is_file():
                raise UsageError(
                    f"{run_dir} is not the same directory for every process: choose a --run-dir "
                    "on a file system that all machines share"
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
                variant=variant,
            )
        checkpoint = load_part(run_dir / CHECKPOINTS, checkpoint, ranks)
        evaluation = TrainingEvaluation(evaluator, agent, monitor, config.seed)
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
            run_dir=run_dir,
            lock=lock,
            identity=identity,
            profile=Profile(run_dir / "profile") if config.profile and ranks.is_first else None,
            distiller=students,
            ranks=ranks,
        )
        if checkpoint is not None:
            games = "beginning new games at" if config.fresh_games else "replaying the games up to"
            say(f"{run_dir}: {games} frame {checkpoint.state['frames']:,}")
            try:
                trainer.load(checkpoint, fresh_games=config.fresh_games)
            except ReplayMismatchError as error:
                raise EbuError(str(error)) from error
            except EnvironmentFault as fault:
                raise EbuError(f"{fault}; --fresh-games resumes with new games") from fault
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
        learner.share()
        on_failure.pop_all()
    return trainer


def check_ranks(
    config: TrainConfig, run_dir: Path, earlier: Mapping[str, Any] | None, ranks: Ranks
) -> None:
    """Raise `UsageError` for what several processes cannot train, or another number of them."""
    before, now = 1 if earlier is None else earlier.get("ranks", 1), ranks.world_size
    if earlier is not None and before != now:
        how = f"with torchrun --nproc-per-node {before}" if before > 1 else "without torchrun"
        raise UsageError(
            f"{run_dir} was started in {before} process{'es' * (before > 1)}, not in {now}, and "
            f"its environments and replay memory lie in as many parts: resume it {how}"
        )
    if ranks.is_single:
        return
    refuse_ranks(config.method)
    if config.distill:
        raise UsageError(
            "--distill trains on all that is stored, and each of several processes stores a part "
            "of it: leave it out, and distil the run afterwards with distill.py"
        )


def check_gpus(device: torch.device, ranks: Ranks) -> None:
    """Raise `UsageError` unless each rank of this machine has a GPU of its own."""
    if device.type == "cuda" and ranks.local_world_size > torch.cuda.device_count():
        raise UsageError(
            f"{ranks.local_world_size} processes need as many GPUs, and there are "
            f"{torch.cuda.device_count()}: lower --nproc-per-node, or add --device cpu"
        )


def part_of_rank(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The settings of a run with a rank's part of what is shared out."""
    num_envs = ranks.part_of(config.num_envs, "--num-envs")
    replay_capacity = ranks.part_of(config.replay_capacity, "--replay-capacity")
    batch_size = ranks.part_of(config.method.batch_size, "--batch-size")
    method = replace(config.method, batch_size=batch_size)
    # One segment in a minibatch becomes one for each rank.
    if isinstance(method, SegmentConfig) and method.mix_segments > 1:
        mix_segments = ranks.part_of(method.mix_segments, "--mix-segments")
        method = replace(method, mix_segments=mix_segments)
    return replace(config, num_envs=num_envs, replay_capacity=replay_capacity, method=method)


def of_rank(seed: np.random.SeedSequence, ranks: Ranks) -> np.random.SeedSequence:
    """What a rank's generator starts from; a single process has the seed itself."""
    return seed if ranks.is_single else seed.spawn(ranks.world_size)[ranks.rank]


def build_replay(
    capacity: int, env: VectorEnvironment, device: torch.device, ranks: Ranks
) -> EpisodicReplay:
    """A rank's part of the replay memory. Raises `UsageError` where it does not fit."""
    dtype = torch_dtype(env.frame_dtype)
    if device.type == "cpu" and not ranks.is_single:
        needed = EpisodicReplay.required_bytes(
            capacity, env.num_envs, env.frame_shape, dtype, env.stack
        )
        whole, of_machine = capacity * ranks.world_size, needed * ranks.local_world_size
        refuse_oversized_replay(whole, of_machine, 0, device)
    try:
        return EpisodicReplay(
            capacity=capacity,
            num_streams=env.num_envs,
            frame_shape=env.frame_shape,
            frame_dtype=dtype,
            stack=env.stack,
            device=device,
        )
    except UsageError as error:
        if ranks.is_single:
            raise
        raise UsageError(f"in each of {ranks.world_size} processes, {error}") from error


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
    if is_atari(game) and num_envs >= MANY_ENVS:
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


def newest_checkpoint(
    run_dir: Path, identity: Mapping[str, Any], *, fresh_games: bool
) -> Checkpoint | None:
    """The newest checkpoint, for fresh games also of those that an environment's fault left."""
    exact = load_latest(run_dir / "checkpoints", run=identity)
    if not fresh_games:
        return exact
    left = load_latest(run_dir / FRESH_GAMES, run=identity)
    if exact is None or left is None:
        return exact or left
    return max(exact, left, key=lambda checkpoint: int(checkpoint.state["frames"]))
