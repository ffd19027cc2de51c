"""Frames per second of our Atari environments, against what they are made of and what others use.

    python -m benchmarks.env_speed --num-envs 16 --json environments.json

The same game, number of environments, cores and random actions for all, without sticky actions and
no-ops:

| name | what is stepped |
| --- | --- |
| ours | `envs.AtariVector`: newest frames; lives, ends and a journal of the actions kept |
| native | ale-py's `AtariVectorEnv`, set up in the same way |
| native_stacks | the same with its stacks of 4 frames |
| sync | gymnasium's `SyncVectorEnv` of `AtariPreprocessing` and `FrameStackObservation` |
| async | gymnasium's `AsyncVectorEnv` of the same, a process for each environment |
| emulator | one bare `ALEInterface` on one core, actions repeated 4 times, no picture taken |

Each round steps all of them, one after the other, because the speed of a machine drifts, and a
ratio is taken within a round. Frames are emulator frames, 4 to an agent step. A vector environment
starts the game after one that ended in a step of its own, which counts like any other.

The results file holds `rounds` (frames per second of each) and, as `min`, `median` and `max` over
them, `frames_per_second` of each and `ratio`, ours over each of the others.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ale_py
import gymnasium
import numpy as np
from ale_py.registration import rom_id_to_name
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from benchmarks.measurement import (
    markdown,
    publish,
    require_at_least,
    require_installed,
    require_writable,
    say,
    spread,
    stated,
)
from ebu.errors import UsageError
from ebu.run.cli import all_cores, parse, run_command
from envs import AtariVector
from envs.atari import FRAME_SKIP
from envs.games import canonical_game

MAX_FRAMES_PER_GAME = 108_000

# Takes the actions of one vector step, (N,) int64.
Step = Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    against: tuple[Literal["native", "native_stacks", "sync", "async", "emulator"], ...] = (
        "native",
        "native_stacks",
        "sync",
        "async",
        "emulator",
    )
    """What ours is compared with; sync and async need OpenCV."""
    game: str = "pong"
    """An Atari game."""
    num_envs: int = 16
    """Environments of each."""
    threads: int = 0
    """Cores that everything runs on, and emulator threads; 0: all cores."""
    steps: int = 500
    """Vector steps of each in a round."""
    rounds: int = 5
    """Rounds; each measures everything once."""
    seed: int = 0
    """Seed of the games and the actions."""
    json: Path | None = None
    """Write settings, machine and all figures to this file."""


def ours(settings: Settings, game: str, closing: ExitStack) -> Step:
    """Our environments, as training steps them."""
    env = AtariVector(
        game,
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


def native(settings: Settings, game: str, closing: ExitStack, stack: int = 1) -> Step:
    """ale-py's vector environment alone."""
    env = AtariVectorEnv(
        game,
        settings.num_envs,
        num_threads=min(settings.threads, settings.num_envs),
        max_num_frames_per_episode=MAX_FRAMES_PER_GAME,
        stack_num=stack,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    closing.callback(env.close)
    env.reset(seed=settings.seed)
    return env.step


def wrapped(settings: Settings, game: str, closing: ExitStack, mode: str) -> Step:
    """Gymnasium's preprocessing and stacking in its own vector environments."""
    env = gymnasium.make_vec(
        f"ALE/{rom_id_to_name(game)}-v5",
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


def bare_emulator(game: str, seed: int) -> ale_py.ALEInterface:
    """An emulator with nothing around it, at the start of a game."""
    # It announces itself and each game otherwise.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    bare = ale_py.ALEInterface()
    bare.setInt("random_seed", seed)
    bare.setInt("max_num_frames_per_episode", MAX_FRAMES_PER_GAME)
    bare.setFloat("repeat_action_probability", 0.0)
    rom = ale_py.roms.get_rom_path(game)
    assert rom is not None  # canonical_game knows only games that are there
    bare.loadROM(rom)
    return bare


def emulator(settings: Settings, game: str, closing: ExitStack) -> Step:
    """One emulator, which plays as many agent steps as all environments of the others together."""
    bare = bare_emulator(game, settings.seed)
    moves = bare.getMinimalActionSet()

    def step(actions: np.ndarray) -> None:
        for action in actions.tolist():
            for _ in range(FRAME_SKIP):
                bare.act(moves[action])
            if bare.game_over():
                bare.reset_game()

    return step


CONTENDERS: dict[str, Callable[[Settings, str, ExitStack], Step]] = {
    # In front, so that it forks its processes before there are threads.
    "async": partial(wrapped, mode="async"),
    "ours": ours,
    "native": native,
    "native_stacks": partial(native, stack=4),
    "sync": partial(wrapped, mode="sync"),
    "emulator": emulator,
}


def measure(settings: Settings, game: str) -> dict[str, Any]:
    """The figures of all rounds."""
    rng = np.random.default_rng(settings.seed)
    num_actions = len(bare_emulator(game, settings.seed).getMinimalActionSet())
    rounds: list[dict[str, float]] = []
    with ExitStack() as closing:
        steppers = {
            name: make(settings, game, closing)
            for name, make in CONTENDERS.items()
            if name == "ours" or name in settings.against
        }
        for number in range(settings.rounds + 1):
            # The first one is not timed: processes start, caches fill.
            steps = settings.steps if number else min(settings.steps, 20)
            actions = rng.integers(num_actions, size=(steps, settings.num_envs))
            speeds = {name: time_steps(step, actions) for name, step in steppers.items()}
            if number:
                rounds.append(speeds)
                listed = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
                say(f"round {number}/{settings.rounds}, frames/s: {listed}")
    return {
        "rounds": rounds,
        "frames_per_second": {name: spread([each[name] for each in rounds]) for name in steppers},
        "ratio": {
            name: spread([each["ours"] / each[name] for each in rounds])
            for name in settings.against
        },
    }


def time_steps(step: Step, actions: np.ndarray) -> float:
    """Emulator frames per second of these vector steps, (T, N) actions."""
    started = time.perf_counter()
    for chosen in actions:
        step(chosen)
    return actions.size * FRAME_SKIP / (time.perf_counter() - started)


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = []
    for name in ("ours", *figures["ratio"]):
        speed, ratio = figures["frames_per_second"][name], figures["ratio"].get(name)
        rows.append(
            (
                name,
                f"{speed['median']:,.0f} ({speed['min']:,.0f}-{speed['max']:,.0f})",
                f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "",
            )
        )
    return markdown(("environments", "frames/s, median (min-max)", "ours over it"), rows)


def main() -> None:
    """Measure, print the table and write the file."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="python -m benchmarks.env_speed",
        description="Frames per second of our Atari environments and of others.",
    )
    require_at_least(1, settings, "num_envs", "steps", "rounds")
    require_at_least(0, settings, "threads", "seed")
    require_writable(settings.json)
    try:
        game = canonical_game(settings.game)
    except ValueError as error:
        raise UsageError(f"--game: {error}") from error
    if {"sync", "async"} & set(settings.against):
        require_installed("cv2", "OpenCV, for --against sync and async,")
    cores = all_cores()
    if settings.threads > cores:
        raise UsageError(f"--threads {settings.threads}: there are {cores} cores here")
    settings = replace(settings, game=game, threads=settings.threads or cores)
    context = stated(settings, ("opencv-python-headless",))
    # Processes and threads that are started from here on inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    figures = measure(settings, game)
    publish(context, figures, table(figures), settings.json)


if __name__ == "__main__":
    run_command(main)
