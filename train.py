"""Train an agent on an Atari game or any Gymnasium environment with discrete actions."""

import dataclasses
import difflib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents import AGENTS, AgentConfig, Learner, LearnerConfig
from ebu.checkpoint import load_latest
from ebu.commandline import parse, run_command
from ebu.errors import EbuError, UsageError
from ebu.evaluation import evaluate, summarise
from ebu.monitoring import Monitor, Progress, cut_logs
from ebu.replay import EpisodicReplay
from ebu.run_directory import open_run_directory
from ebu.schedules import ExplorationConfig
from ebu.training import Trainer, TrainingConfig
from envs import ReplayMismatchError, is_atari, make_vector
from envs.games import canonical_game
from envs.protocols import PROTOCOLS


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation in training, on environments and random numbers of its own."""

    eval_every_frames: int = 1_000_000
    """Frames between two evaluations; 0 turns them off."""
    eval_episodes: int = 10
    """Games in an evaluation."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run is made of."""

    game: str = "pong"
    """Atari game (pong, Pong, ALE/Pong-v5) or id of a Gymnasium environment (CartPole-v1)."""
    agent: str = "ebu"
    """How transitions are drawn and what their targets are: ebu or dqn."""
    preset: str = "default"
    """Starting point of all settings: default, or paper (those of the EBU paper's code)."""
    frames: int = 10_000_000
    """Emulator frames to train for (4 per agent step on Atari). May grow when a run goes on."""
    seed: int = 0
    """Seed of everything random in the run."""
    run_dir: Path | None = None
    """Where the run lives [default: runs/GAME-AGENT-PRESET-seedSEED]. A run that is there goes on."""
    protocol: str = "paper"
    """paper (no sticky actions, a lost life ends a segment) or machado (sticky actions)."""
    num_envs: int = 8
    """Environments played side by side."""
    replay_capacity: int = 1_000_000
    """Transitions in the replay memory; 7 kB each on Atari."""
    log_every_frames: int = 10_000
    """Frames between two lines of metrics."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints; changes nothing in the run."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the networks; weights, targets and losses are float32 always."""
    threads: int = 0
    """Threads of torch and of the emulators; 0 takes one for each processor core."""
    method: AgentConfig = field(default_factory=AgentConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


DEFAULT = TrainConfig()

PAPER = replace(
    DEFAULT,
    preset="paper",
    num_envs=1,
    method=replace(DEFAULT.method, updates_per_step=1.0, learning_starts=50_000),
    learner=replace(
        DEFAULT.learner,
        optimizer="rmsprop",
        learning_rate=2.5e-4,
        optimizer_epsilon=0.01,
        loss_reduction="sum",
        target_sync_updates=10_000,
    ),
    exploration=replace(
        DEFAULT.exploration,
        epsilon_end=0.1,
        epsilon_decay_steps=1_000_000,
        random_start_actions=4,
    ),
    evaluation=EvaluationConfig(eval_every_frames=250_000, eval_episodes=30),
)

PRESETS = {"default": DEFAULT, "paper": PAPER}

NOT_PART_OF_THE_RUN = frozenset({"run_dir", "checkpoint_minutes"})
"""Settings that change nothing in what a run computes."""


def main() -> int:
    config = parse_arguments(sys.argv[1:])
    trainer = build_trainer(config)
    run_dir = trainer.run_dir
    resumed = f"continuing at frame {trainer.frames:,}" if trainer.frames else "starting"
    print(f"{run_dir}: {resumed}; watch it with: tensorboard --logdir {run_dir}", file=sys.stderr)
    if trainer.frames >= config.frames:
        print(f"already at {trainer.frames:,} frames: raise --frames to go on", file=sys.stderr)
        return 0
    stopped_by: list[int] = []

    def stop(number: int, _: Any) -> None:
        # A second signal ends the process at once; the last complete checkpoint stays.
        signal.signal(number, signal.SIG_DFL)
        stopped_by.append(number)
        trainer.stop_requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    progress = Progress(config.frames, initial=trainer.frames)
    try:
        finished = trainer.run(config.frames, progress)
    finally:
        progress.close()
        trainer.close()
    if not finished:
        print(f"stopped at frame {trainer.frames:,}: the same command goes on", file=sys.stderr)
        return 128 + stopped_by[0]
    print(f"done: score it with: python evaluate.py {run_dir}", file=sys.stderr)
    return 0


def parse_arguments(args: Sequence[str]) -> TrainConfig:
    """Flags to a checked configuration; the preset they name gives the defaults.

    Raises `UsageError` with one line for anything that cannot be run.
    """
    preset = "default"
    for position, argument in enumerate(args):
        name, separator, value = argument.partition("=")
        if name == "--preset":
            preset = value if separator else "".join(args[position + 1 : position + 2])
    config = parse(
        TrainConfig,
        args,
        default=PRESETS.get(preset, DEFAULT),
        prog="train.py",
        description=(
            "Train an agent on an Atari game. The same command on the same run directory goes on "
            "where it stopped."
        ),
    )
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    method, learner, exploration = config.method, config.learner, config.exploration
    _one_of("--agent", config.agent, AGENTS)
    _one_of("--preset", config.preset, PRESETS)
    _one_of("--protocol", config.protocol, PROTOCOLS)
    _one_of("--device", config.device, ("auto", "cpu", "cuda"))
    for flag, value in (
        ("--frames", config.frames),
        ("--num-envs", config.num_envs),
        ("--replay-capacity", config.replay_capacity),
        ("--log-every-frames", config.log_every_frames),
        ("--checkpoint-minutes", config.checkpoint_minutes),
        ("--batch-size", method.batch_size),
        ("--mix-segments", method.mix_segments),
        ("--updates-per-step", method.updates_per_step),
        ("--learning-rate", learner.learning_rate),
        ("--optimizer-epsilon", learner.optimizer_epsilon),
        ("--target-sync-updates", learner.target_sync_updates),
        ("--eval-episodes", config.evaluation.eval_episodes),
    ):
        _require(value > 0 and np.isfinite(value), f"{flag} must be positive, not {value}")
    for flag, value in (
        ("--seed", config.seed),
        ("--threads", config.threads),
        ("--learning-starts", method.learning_starts),
        ("--epsilon-decay-steps", exploration.epsilon_decay_steps),
        ("--random-start-actions", exploration.random_start_actions),
        ("--eval-every-frames", config.evaluation.eval_every_frames),
    ):
        _require(value >= 0, f"{flag} must not be negative, but is {value}")
    for flag, share in (
        ("--beta", method.beta),
        ("--gamma", method.gamma),
        ("--epsilon-start", exploration.epsilon_start),
        ("--epsilon-end", exploration.epsilon_end),
    ):
        _require(0 <= share <= 1, f"{flag} must lie between 0 and 1, but is {share}")
    _require(
        method.batch_size % method.mix_segments == 0,
        f"--mix-segments {method.mix_segments} must divide --batch-size {method.batch_size}",
    )
    _require(
        config.device != "cuda" or torch.cuda.is_available(),
        "--device cuda: there is no CUDA device here; choose --device cpu or auto",
    )


def _one_of(flag: str, value: str, known: Sequence[str] | dict[str, Any]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, list(known), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{flag} {value}: choose one of {', '.join(known)}{hint}")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise UsageError(complaint)


def build_trainer(config: TrainConfig) -> Trainer:
    """Open the run directory and put a run together; an earlier one there is taken up.

    Raises `UsageError` if the run cannot be started here, `EbuError` if its checkpoints are
    damaged.
    """
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu")
        if config.device == "auto"
        else config.device
    )
    threads = config.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    protocol = PROTOCOLS[config.protocol]
    game = canonical_game(config.game) if is_atari(config.game) else config.game
    to_seed = np.random.SeedSequence(config.seed)
    weights_rng, exploration_rng, drawing_rng, env_rng = (
        np.random.default_rng(child) for child in to_seed.spawn(4)
    )

    def make_env(num_envs: int, seed: int, training: bool) -> Any:
        return make_vector(
            game,
            num_envs,
            seed=seed,
            protocol=protocol,
            training=training,
            num_threads=min(threads, num_envs),
        )

    try:
        env = make_env(config.num_envs, int(env_rng.integers(2**31)), True)
    except ValueError as error:
        raise UsageError(f"--game: {error}") from error
    step_frames = config.num_envs * env.frames_per_step
    _require(
        config.frames >= step_frames,
        f"--frames {config.frames} is less than one step of --num-envs {config.num_envs}, "
        f"{step_frames} frames: raise --frames or lower --num-envs",
    )
    frame_dtype = torch.from_numpy(np.empty(0, env.frame_dtype)).dtype
    replay = EpisodicReplay(
        capacity=config.replay_capacity,
        num_streams=config.num_envs,
        frame_shape=env.frame_shape,
        frame_dtype=frame_dtype,
        stack=env.stack,
        device=device,
    )
    learner = Learner(
        config.learner,
        stack=env.stack,
        frame_shape=env.frame_shape,
        num_actions=env.num_actions,
        device=device,
        precision=config.precision,
        rng=weights_rng,
    )
    agent = AGENTS[config.agent](config.method, learner, drawing_rng)

    run_dir = config.run_dir or Path(
        "runs", f"{game.replace('/', '-')}-{config.agent}-{config.preset}-seed{config.seed}"
    )
    description = {
        "settings": _flat(replace(config, game=game, device=device.type, threads=threads)),
        "environment": {
            "num_actions": env.num_actions,
            "stack": env.stack,
            "frame_shape": list(env.frame_shape),
            "frame_dtype": str(np.dtype(env.frame_dtype)),
            "frames_per_step": env.frames_per_step,
        },
    }
    lock = open_run_directory(
        run_dir,
        description,
        may_change=NOT_PART_OF_THE_RUN,
        may_grow=frozenset({"frames"}),
    )
    checkpoint = load_latest(run_dir / "checkpoints")
    warnings = [] if checkpoint is None else checkpoint.warnings
    warnings += cut_logs(run_dir, {} if checkpoint is None else checkpoint.logs)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    if checkpoint is None:
        shutil.rmtree(run_dir / "best", ignore_errors=True)
    monitor = Monitor(run_dir, resumed_at=None if checkpoint is None else checkpoint.state["frames"])
    if checkpoint is None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in description["settings"].items())
        monitor.text("configuration", f"| setting | value |\n| --- | --- |\n{rows}")
        monitor.text("protocol", "\n\n".join(f"{k}: {v}" for k, v in asdict(protocol).items()))
        monitor.hyperparameters(description["settings"], ["eval/mean", "train/episode_return"])

    def evaluate_now(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        # Seeds of their own: an evaluation takes nothing from the run's random streams.
        to_evaluate = np.random.SeedSequence([config.seed, frames])
        env_seed, acting = to_evaluate.spawn(2)
        episodes = config.evaluation.eval_episodes
        eval_env = make_env(
            min(episodes, 32), int(np.random.default_rng(env_seed).integers(2**31)), False
        )
        try:
            epsilon = protocol.eval_epsilon
            played = evaluate(
                agent.act,
                eval_env,
                episodes=episodes,
                epsilon=config.exploration.epsilon_end if epsilon is None else epsilon,
                rng=np.random.default_rng(acting),
                random_start_actions=config.exploration.random_start_actions,
                should_stop=should_stop,
                device=device,
            )
        finally:
            eval_env.close()
        return None if played is None else summarise(played)

    trainer = Trainer(
        TrainingConfig(
            updates_per_step=config.method.updates_per_step,
            learning_starts=config.method.learning_starts,
            life_loss_ends_segment=protocol.life_loss_ends_segment,
            log_every_frames=config.log_every_frames,
            eval_every_frames=config.evaluation.eval_every_frames,
            checkpoint_minutes=config.checkpoint_minutes,
        ),
        env=env,
        replay=replay,
        agent=agent,
        exploration=config.exploration,
        rng=exploration_rng,
        monitor=monitor,
        evaluate=evaluate_now,
        run_dir=run_dir,
        lock=lock,
        device=device,
    )
    if checkpoint is not None:
        try:
            trainer.load(checkpoint)
        except ReplayMismatchError as error:
            raise EbuError(str(error)) from error
    return trainer


def _flat(config: Any) -> dict[str, Any]:
    """Every setting by the name of its flag."""
    settings: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            settings |= _flat(value)
        else:
            settings[entry.name] = str(value) if isinstance(value, Path) else value
    return settings


if __name__ == "__main__":
    run_command(main)
