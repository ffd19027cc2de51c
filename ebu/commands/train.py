"""Train an agent on an Atari game or any Gymnasium environment with discrete actions."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import AGENTS, Agent
from agents.distillation.online import Students, student_directory
from ebu.commands.presets import (
    NOT_PART_OF_THE_RUN,
    TrainConfig,
    flat,
    gymnasium_defaults,
    parse_arguments,
)
from ebu.errors import EbuError, UsageError
from ebu.evaluation import Evaluation, evaluate, summarise
from ebu.frames import torch_dtype
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import Checkpoint, load_latest
from ebu.run.cli import run_command, stop_on_signals
from ebu.run.directory import directory_name, open_run_directory, read_earlier_config
from ebu.run.hints import program_command, tensorboard_command
from ebu.run.logs import EVALUATIONS, METRICS, Monitor, Progress, cut_logs, last_frames
from ebu.run.machine import choose_machine
from ebu.run.profiling import Profile
from ebu.training import Trainer, TrainingConfig
from envs import (
    ReplayMismatchError,
    VectorEnvironment,
    is_atari,
    make_vector,
    random_and_human,
)
from envs.film import CannotFilmError, film
from envs.games import canonical_game
from envs.protocols import PROTOCOLS, Protocol

MOST_EVALUATION_ENVS = 32
HYPERPARAMETERS = ("agent", "game", "learning_rate", "network", "seed")
MORE_HYPERPARAMETERS = (
    "batch_size",
    "beta",
    "gamma",
    "num_envs",
    "preset",
    "protocol",
    "replay_capacity",
    "target_sync_updates",
    "updates_per_step",
)
"""What TensorBoard compares runs by; those of `MORE_HYPERPARAMETERS` when they are ticked."""
# Emulators load their game one after the other, in one call that shows no progress.
MANY_ENVS, EMULATOR_SECONDS = 16, 0.2
FILM_STEPS, FILM_EVERY, FILM_FPS = 1_000, 4, 15


def main() -> int:
    config = parse_arguments(sys.argv[1:])
    trainer = build_trainer(config)
    run_dir = trainer.run_dir
    if not is_atari(config.game):
        _say(gymnasium_defaults(config))
    resumed = f"continuing at frame {trainer.frames:,}" if trainer.frames else "starting"
    _say(f"{run_dir}: {resumed}; watch it with: {tensorboard_command(run_dir)}")
    already_played = trainer.finished(config.frames)
    if already_played:
        more = program_command("train.py", "--resume", run_dir, "--frames", 2 * trainer.frames)
        _say(f"already at {trainer.frames:,} frames: train it further with: {more}")
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        trainer.stop_requested = True

    stop_on_signals(stop)
    progress = Progress(config.frames, initial=trainer.frames)
    try:
        finished = already_played or trainer.run(config.frames, progress)
        finished = finished and trainer.finish(progress)
    finally:
        progress.close()
        trainer.close()
    if trainer.profile is not None:
        _say(
            f"profile: {trainer.profile.path}: open it in TensorBoard or on ui.perfetto.dev"
            if trainer.profile.path
            else "no profile was written: too few steps with updates were made"
        )
    if not finished:
        again = program_command("train.py", "--resume", run_dir)
        _say(f"stopped at frame {trainer.frames:,}: continue with: {again}")
        return 128 + stopped_by[0]
    _say(f"done: score it with: {program_command('evaluate.py', run_dir)}")
    if is_atari(config.game):
        filming = program_command("evaluate.py", run_dir, "--video", "best_game.mp4")
        _say(f"and film its best game with: {filming}")
    for name in config.distill or ():
        student = student_directory(run_dir, name)
        _say(f"and {name} with: {program_command('evaluate.py', student)}")
    return 0


def build_trainer(config: TrainConfig) -> Trainer:
    """Open the run directory and put a run together; an earlier one there is taken up.

    Raises `UsageError` if the run cannot be started here, `EbuError` if its checkpoints are
    damaged.
    """
    game = canonical_game(config.game) if is_atari(config.game) else config.game
    run_dir = config.run_dir or Path(
        "runs", f"{directory_name(game)}-{config.agent}-{config.preset}-seed{config.seed}"
    )
    machine = choose_machine(
        config.device, config.threads, config.precision, read_earlier_config(run_dir)
    )
    for line in machine.warnings:
        _say(f"warning: {line}")
    device, threads = machine.device, machine.threads
    _prepare_torch(device, threads, config.deterministic)
    protocol = replace(PROTOCOLS[config.protocol], train_noop_max=config.train_noops)
    if config.life_loss_ends_segment is not None:
        protocol = replace(protocol, life_loss_ends_segment=config.life_loss_ends_segment)
    to_seed = np.random.SeedSequence(config.seed)
    weights_rng, exploration_rng, drawing_rng, env_rng = (
        np.random.default_rng(child) for child in to_seed.spawn(4)
    )

    def make_env(num_envs: int, seed: int, training: bool) -> VectorEnvironment:
        return make_vector(
            game,
            num_envs,
            seed=seed,
            protocol=protocol,
            training=training,
            num_threads=min(threads, num_envs),
        )

    if is_atari(game) and config.num_envs >= MANY_ENVS:
        seconds = config.num_envs * EMULATOR_SECONDS
        _say(f"starting {config.num_envs} emulators, one by one: {seconds:.0f} s or more")
    try:
        env = make_env(config.num_envs, int(env_rng.integers(2**31)), True)
    except ValueError as error:
        raise UsageError(f"--game: {error}") from error
    step_frames = config.num_envs * env.frames_per_step
    if config.frames < step_frames:
        raise UsageError(
            f"--frames {config.frames} is less than one step of --num-envs {config.num_envs}, "
            f"{step_frames} frames: raise --frames or lower --num-envs"
        )
    replay = EpisodicReplay(
        capacity=config.replay_capacity,
        num_streams=config.num_envs,
        frame_shape=env.frame_shape,
        frame_dtype=torch_dtype(env.frame_dtype),
        stack=env.stack,
        device=device,
    )
    kind = AGENTS[config.agent]
    learner = kind.build_learner(
        config.method,
        config.learner,
        stack=env.stack,
        frame_shape=env.frame_shape,
        num_actions=env.num_actions,
        device=device,
        precision=machine.precision,
        rng=weights_rng,
    )
    agent = kind(config.method, learner, drawing_rng)

    description: dict[str, Any] = {
        "settings": {**flat(config), "game": game, **machine.settings()},
        "automatic": machine.automatic,
        "environment": {
            "num_actions": env.num_actions,
            "stack": env.stack,
            "frame_shape": list(env.frame_shape),
            "frame_dtype": str(np.dtype(env.frame_dtype)),
            "frames_per_step": env.frames_per_step,
        },
    }
    students = None
    if config.distill:
        students = Students(config.distill, agent, description, run_dir, seed=config.seed)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(env.close)
        lock = on_failure.enter_context(
            open_run_directory(
                run_dir,
                description,
                may_change=NOT_PART_OF_THE_RUN | set(machine.automatic),
                may_grow=frozenset({"frames"}),
            )
        )
        checkpoint = load_latest(run_dir / "checkpoints")
        monitor = on_failure.enter_context(
            contextlib.closing(_open_logs(run_dir, checkpoint, config, description, protocol))
        )
        trainer = Trainer(
            TrainingConfig(
                updates_per_step=config.method.updates_per_step,
                learning_starts=config.method.learning_starts,
                gamma=config.method.gamma,
                clip_rewards=config.method.clip_rewards,
                life_loss_ends_segment=protocol.life_loss_ends_segment,
                log_every_frames=config.log_every_frames,
                eval_every_frames=config.evaluation.eval_every_frames,
                checkpoint_minutes=config.checkpoint_minutes,
                overlap=config.overlap,
            ),
            env=env,
            replay=replay,
            agent=agent,
            exploration=config.exploration,
            rng=exploration_rng,
            monitor=monitor,
            evaluate=Evaluator(config, game, protocol, agent, monitor, make_env, device),
            run_dir=run_dir,
            lock=lock,
            profile=Profile(run_dir / "profile") if config.profile else None,
            follower=students,
        )
        if checkpoint is not None:
            _say(f"{run_dir}: playing the games of frame {checkpoint.state['frames']:,} again")
            try:
                trainer.load(checkpoint)
            except ReplayMismatchError as error:
                raise EbuError(str(error)) from error
            except KeyError as error:
                raise EbuError(
                    f"{checkpoint.directory} was written by another version and has no {error}: "
                    "continue the run with that version, or start a new one"
                ) from error
        on_failure.pop_all()
    return trainer


def _prepare_torch(device: torch.device, threads: int, deterministic: bool) -> None:
    """Settings that hold for the whole process."""
    torch.set_num_threads(threads)
    if device.type != "cuda":
        return
    # float32 means float32: torch would let convolutions round their inputs to TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # Read when cuBLAS first computes something.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        # What is allocated here is written before it is read.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _open_logs(
    run_dir: Path,
    checkpoint: Checkpoint | None,
    config: TrainConfig,
    description: dict[str, Any],
    protocol: Protocol,
) -> Monitor:
    """Cut the logs back to the checkpoint and open them; without one, begin new ones.

    What was written because the run ended stays until the run is trained further.
    """
    if checkpoint is not None:
        warnings = checkpoint.warnings
        if not _is_complete(run_dir, checkpoint, config):
            warnings = warnings + cut_logs(run_dir, checkpoint.logs)
        for line in warnings:
            _say(f"warning: {line}")
        return Monitor(run_dir, resumed_at=checkpoint.state["frames"])
    cut_logs(run_dir, {})
    shutil.rmtree(run_dir / "best", ignore_errors=True)
    monitor = Monitor(run_dir)
    settings = description["settings"]
    for title, table in (("configuration", settings), ("protocol", asdict(protocol))):
        rows = "".join(f"\n| {name} | {value} |" for name, value in table.items())
        monitor.text(title, f"| setting | value |\n| --- | --- |{rows}")
    monitor.layout()
    # Several learners have a β each.
    more = {name: settings.get(name) for name in MORE_HYPERPARAMETERS}
    if settings.get("learners", 1) > 1:
        more["beta"] = None
    # A seed is a name: it has no mean and no decimals.
    first = {name: settings[name] for name in HYPERPARAMETERS} | {"seed": str(settings["seed"])}
    monitor.hyperparameters(first, more)
    return monitor


def _is_complete(run_dir: Path, checkpoint: Checkpoint, config: TrainConfig) -> bool:
    """Whether all frames are played, and the logs hold what a run's end adds to them."""
    frames = checkpoint.state["frames"]
    logs = [METRICS] if config.evaluation.eval_every_frames == 0 else [METRICS, EVALUATIONS]
    written = all(last_frames(run_dir / log) == frames for log in logs)
    return bool(frames >= config.frames and written)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class Evaluator:
    """Scores the agent in training on environments and random numbers of its own."""

    def __init__(
        self,
        config: TrainConfig,
        game: str,
        protocol: Protocol,
        agent: Agent,
        monitor: Monitor,
        make_env: Callable[[int, int, bool], VectorEnvironment],
        device: torch.device,
    ) -> None:
        self.config = config
        self.game = game
        self.protocol = protocol
        self.agent = agent
        self.monitor = monitor
        self.make_env = make_env
        self.device = device

    def __call__(self, frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Play the evaluation due at `frames`; None if told to stop before its end."""
        # Seeded by where in the run it stands: it takes nothing from the run's random streams.
        playing, acting = (
            np.random.default_rng(child)
            for child in np.random.SeedSequence([self.config.seed, frames]).spawn(2)
        )
        episodes = self.config.evaluation.eval_episodes
        final_epsilon = self.config.exploration.epsilon_end
        env = self.make_env(
            min(episodes, MOST_EVALUATION_ENVS), int(playing.integers(2**31)), False
        )
        try:
            played = evaluate(
                self.agent.play,
                env,
                episodes=episodes,
                epsilon=self.protocol.evaluation_epsilon(self.game, final_epsilon),
                rng=acting,
                random_start_actions=self.config.exploration.random_start_actions,
                should_stop=should_stop,
                device=self.device,
            )
            if played is None:
                return None
            self._film(frames, env, played)
        finally:
            env.close()
        table = self.protocol.human_table
        random, human = random_and_human(self.game, table)
        return summarise(played, random_score=random, human_score=human, human_table=table)

    def _film(self, frames: int, env: VectorEnvironment, played: Evaluation) -> None:
        """Show the beginning of the best game in TensorBoard."""
        game = film(env, *played.course(played.best_game))
        with contextlib.suppress(CannotFilmError):
            pictures = list(islice(game, 0, FILM_STEPS, FILM_EVERY))
            self.monitor.animation(frames, "eval/best_game", np.stack(pictures), fps=FILM_FPS)


def command() -> None:
    """Run the command with the words of the command line, and exit."""
    run_command(main)


if __name__ == "__main__":
    command()
