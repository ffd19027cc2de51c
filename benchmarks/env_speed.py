"""Frames per second of our Atari environments, against what they are made of and what others use.

    python -m benchmarks.env_speed --num-envs 16 --json environments.json

The same game, number of environments, cores and random actions for all, without sticky actions and
no-ops:

| name | what is stepped |
| --- | --- |
| ours | `envs.AtariVector`: newest frames; lives, ends and a journal of the actions kept |
| native | ale-py's `AtariVectorEnv`, set up in the same way |
| sync, async | gymnasium's `SyncVectorEnv`, `AsyncVectorEnv` of its preprocessing and stacking |
| emulator | one bare `ALEInterface` on one core, actions repeated 4 times, no picture taken |

Rounds are interleaved, and a ratio is taken within a round. Frames are emulator frames, 4 to an
agent step.

The results file holds `rounds` (frames per second of each) and, as `min`, `median` and `max` over
them, `frames_per_second` of each and `ratio`, ours over each of the others.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, get_args

import ale_py
import gymnasium
import numpy as np
from ale_py.registration import rom_id_to_name
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from benchmarks.measurement import (
    GameSettings,
    interleave,
    ranged,
    require_installed,
    run_benchmark,
    spread,
)
from ebu.errors import UsageError
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.hardware import all_cores
from ebu.run.settings import Positive, Threads
from envs import AtariVector
from envs.atari import FRAME_SKIP

MAX_FRAMES_PER_GAME = 108_000

Peer = Literal["native", "sync", "async", "emulator"]
# Takes the actions of one vector step, (N,) int64.
Step = Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Settings(GameSettings):
    """What is measured."""

    against: tuple[Peer, ...] = get_args(Peer)
    """What ours is compared with; sync and async need OpenCV."""
    num_envs: Positive = 16
    """Environments of each."""
    threads: Threads = 0
    """Cores that everything runs on, and emulator threads; 0: all cores."""
    steps: Positive = 500
    """Vector steps of each in a round."""
    rounds: Positive = 5
    """Rounds; each measures everything once."""

    def checked(self) -> Self:
        """With the game's id and the number of cores."""
        if {"sync", "async"} & set(self.against):
            require_installed("cv2", "OpenCV, for --against sync and async,")
        cores = all_cores()
        if self.threads > cores:
            raise UsageError(f"--threads {self.threads}: there are {cores} cores here")
        return replace(super().checked(), threads=self.threads or cores)


def ours(settings: Settings, closing: ExitStack) -> Step:
    """Our environments, as training steps them."""
    env = AtariVector(
        settings.game,
        settings.num_envs,
        seed=settings.seed,
        max_frames_per_game=MAX_FRAMES_PER_GAME,
        num_threads=min(settings.threads, settings.num_envs),
    )
    closing.callback(env.close)
    env.reset()

    def step(actions: np.ndarray) -> None:
        env.send(actions)
        env.recv()

    return step


def native(settings: Settings, closing: ExitStack) -> Step:
    """ale-py's vector environment alone."""
    env = AtariVectorEnv(
        settings.game,
        settings.num_envs,
        num_threads=min(settings.threads, settings.num_envs),
        max_num_frames_per_episode=MAX_FRAMES_PER_GAME,
        stack_num=1,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    closing.callback(env.close)
    env.reset(seed=settings.seed)
    return env.step


def wrap(settings: Settings, closing: ExitStack, mode: str) -> Step:
    """Gymnasium's preprocessing and stacking in its own vector environments."""
    env = gymnasium.make_vec(
        f"ALE/{rom_id_to_name(settings.game)}-v5",
        settings.num_envs,
        vectorization_mode=mode,
        wrappers=[
            partial(AtariPreprocessing, noop_max=0, frame_skip=FRAME_SKIP),
            partial(FrameStackObservation, stack_size=4),
        ],
        frameskip=1,
        repeat_action_probability=0.0,
        max_num_frames_per_episode=MAX_FRAMES_PER_GAME,
    )
    closing.callback(env.close)
    env.reset(seed=settings.seed)
    return env.step


def bare_emulator(game: str, seed: int = 0) -> ale_py.ALEInterface:
    """An emulator with nothing around it, at the start of a game."""
    # It announces itself and each game otherwise.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    bare = ale_py.ALEInterface()
    bare.setInt("random_seed", seed)
    bare.setInt("max_num_frames_per_episode", MAX_FRAMES_PER_GAME)
    bare.setFloat("repeat_action_probability", 0.0)
    rom = ale_py.roms.get_rom_path(game)
    assert rom is not None  # canonical_game knows only installed games
    bare.loadROM(rom)
    return bare


def num_actions(game: str) -> int:
    """The number of actions that a game has."""
    return len(bare_emulator(game).getMinimalActionSet())


def emulator(settings: Settings, closing: ExitStack) -> Step:
    """One emulator, which plays as many agent steps as all environments of the others together."""
    bare = bare_emulator(settings.game, settings.seed)
    moves = bare.getMinimalActionSet()

    def step(actions: np.ndarray) -> None:
        for action in actions.tolist():
            for _ in range(FRAME_SKIP):
                bare.act(moves[action])
            if bare.game_over():
                bare.reset_game()

    return step


CONTENDERS: dict[str, Callable[[Settings, ExitStack], Step]] = {
    # First, so that it forks its processes before there are threads.
    "async": partial(wrap, mode="async"),
    "ours": ours,
    "native": native,
    "sync": partial(wrap, mode="sync"),
    "emulator": emulator,
}


def measure(settings: Settings) -> dict[str, Any]:
    """The figures of all rounds."""
    # Processes and threads that are started from here on inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    size = (settings.rounds, settings.steps, settings.num_envs)
    actions = np.random.default_rng(settings.seed).integers(num_actions(settings.game), size=size)
    with ExitStack() as closing:
        steps = {
            name: make(settings, closing)
            for name, make in CONTENDERS.items()
            if name in ("ours", *settings.against)
        }
        for step in steps.values():  # processes start, caches fill
            time_steps(step, actions[0, :20])
        tasks = {name: partial(time_round, step, actions) for name, step in steps.items()}
        rounds = interleave(tasks, settings.rounds)
    return {
        "rounds": rounds,
        "frames_per_second": {name: spread(each[name] for each in rounds) for name in steps},
        "ratio": {
            name: spread(each["ours"] / each[name] for each in rounds) for name in settings.against
        },
    }


def time_round(step: Step, actions: np.ndarray, number: int) -> float:
    """Emulator frames per second of one round of (rounds, T, N) actions."""
    return time_steps(step, actions[number])


def time_steps(step: Step, actions: np.ndarray) -> float:
    """Emulator frames per second of these vector steps, (T, N) actions."""
    started = time.perf_counter()
    for chosen in actions:
        step(chosen)
    return actions.size * FRAME_SKIP / (time.perf_counter() - started)


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = []
    for name in ("ours", *figures["ratio"]):
        ratio = figures["ratio"].get(name)
        speed = ranged(figures["frames_per_second"][name], ",.0f")
        rows.append((name, speed, ranged(ratio) if ratio else ""))
    return markdown.table(("environments", "frames/s, median (min-max)", "ours over it"), rows)


main = partial(run_benchmark, Settings, measure, table, packages=("opencv-python-headless",))

if __name__ == "__main__":
    run_command(main)
