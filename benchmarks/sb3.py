"""Training runs of Stable-Baselines3's DQN, timed as ours are."""

import time
from fractions import Fraction
from typing import Any

import torch

from benchmarks.runs import (
    BATCH_SIZE,
    EPSILON,
    FRAMES_PER_STEP,
    NEVER,
    Conditions,
    Contender,
    Window,
    WindowClock,
)
from ebu.errors import UsageError
from ebu.stopwatch import SpeedMark


def sb3_schedule(num_envs: int, updates_per_step: float) -> tuple[int, int]:
    """Vector steps between two calls of SB3's training and the gradient steps in each.

    As often as whole gradient steps allow: one per 4 agent steps are one every 4th step with 1
    environment, 2 every step with 8. Raises `UsageError` for a rate that needs too long a period.
    """
    rate = Fraction(updates_per_step).limit_denominator(64)
    if not abs(rate - updates_per_step) < 1e-9:
        raise UsageError(
            f"--updates-per-step {updates_per_step}: SB3 makes whole gradient steps after whole "
            "vector steps; compare at a simple fraction such as 0.25"
        )
    per_vector_step = num_envs * rate
    return per_vector_step.denominator, per_vector_step.numerator


def time_sb3(contender: Contender, conditions: Conditions, seed: int) -> Window:
    """Time a run of Stable-Baselines3's DQN on the same game, preprocessed in the same way."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    torch.set_num_threads(conditions.threads)
    name = "".join(word.capitalize() for word in conditions.game.split("_"))

    def make_game() -> Any:
        # Also called in processes in which the games are not registered yet.
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        return gymnasium.make(f"{name}NoFrameskip-v4")

    environment = VecFrameStack(
        # No sticky actions; 84x84 grey frames, the maximum of two, every 4th; clipped rewards;
        # a lost life ends an episode.
        make_atari_env(
            make_game,
            n_envs=contender.num_envs,
            seed=seed,
            vec_env_cls=SubprocVecEnv if contender.processes else DummyVecEnv,
        ),
        n_stack=4,
    )
    vector_steps, gradient_steps = sb3_schedule(contender.num_envs, conditions.updates_per_step)
    model = DQN(
        "CnnPolicy",
        environment,
        batch_size=BATCH_SIZE,
        buffer_size=conditions.replay_capacity,
        learning_starts=conditions.learning_starts,
        train_freq=(vector_steps, "step"),
        gradient_steps=gradient_steps,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        device=conditions.device,
        seed=seed,
    )
    clock = WindowClock(conditions)

    def watch(_: dict[str, Any], __: dict[str, Any]) -> bool:
        frames = model.num_timesteps * FRAMES_PER_STEP
        return not clock.look(SpeedMark(time.perf_counter(), frames, model._n_updates, {}))

    model.learn(NEVER, callback=watch, log_interval=NEVER)
    environment.close()
    return clock.window({})
