"""Training runs for benchmarks: timed windows of whole runs, and random play to learn from.

A timed run plays until `warmup_updates` gradient steps are done; the clock then runs for `window`
agent steps. All runs have the Nature network, minibatches of 32 and the same gradient steps per
agent step, without evaluations and checkpoints.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Annotated, Any, TypeVar, cast
from unittest import mock

import torch

from benchmarks.measurement import DeviceSettings, GameSettings
from ebu.commands import training_environments
from ebu.commands.presets import TrainConfig
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.interfaces import VectorEnvironment
from ebu.run.progress import Progress
from ebu.run.settings import Bounds, NotNegative, Positive, PositiveFloat
from ebu.stopwatch import SpeedMark
from ebu.training import Trainer

FRAMES_PER_STEP = 4
BATCH_SIZE = 32
# Most of a run is played near this ε, and only greedy actions need the network.
EPSILON = 0.1
NEVER = 10**9
STAGES = ("acting", "sending", "learning", "emulator_wait", "storing")
PARTS_OF_LEARNING = ("target_passes", "targets")

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Conditions(GameSettings, DeviceSettings):
    """What all runs that are compared have in common."""

    updates_per_step: PositiveFloat = 0.25
    """Gradient steps per agent step."""
    threads: Positive = 2
    """Threads of torch, the same for all."""
    window: Positive = 5_000
    """Agent steps in the timed part of a run."""
    warmup_updates: Positive = 200
    """Gradient steps before it."""
    learning_starts: NotNegative = 1_000
    """Agent steps of play before the first gradient step."""
    replay_capacity: Positive = 100_000
    """Transitions in the replay memory, the same for all."""
    evaluate: bool = False
    """Also time an evaluation in training, as the default preset has them, after each of ours."""


@dataclass(frozen=True)
class Contender:
    """One kind of run: a trainer, its arithmetic and its number of environments.

    | field | meaning |
    | --- | --- |
    | processes | SB3's environments in processes of their own |
    """

    trainer: str
    num_envs: int
    precision: str = "float32"
    deterministic: bool = False
    processes: bool = False

    @property
    def name(self) -> str:
        """Its name in the table."""
        words = [self.trainer]
        words += [self.precision] if self.precision != "float32" else []
        words += ["deterministic"] if self.deterministic else []
        return f"{' '.join(words)}, N={self.num_envs}" + " in processes" * self.processes


@dataclass(frozen=True)
class Window:
    """What happened while the clock ran.

    | field | meaning |
    | --- | --- |
    | stages | seconds of each stage of ours and of the parts of learning; empty for SB3 |
    | evaluation | seconds of an evaluation, see `time_evaluation`; empty if none was asked for |
    """

    seconds: float
    frames: int
    updates: int
    stages: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)


class WindowClock:
    """Marks where the timed window of a run begins and where it ends."""

    def __init__(self, conditions: Conditions) -> None:
        self._warmup_updates = conditions.warmup_updates
        self._frames = conditions.window * FRAMES_PER_STEP
        self._marks: list[SpeedMark] = []

    def look(self, now: SpeedMark) -> bool:
        """Called after every vector step; returns whether the window is over."""
        begins = not self._marks and now.updates >= self._warmup_updates
        ends = len(self._marks) == 1 and now.frames >= self._marks[0].frames + self._frames
        if begins or ends:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._marks.append(now._replace(clock=time.perf_counter()))
        return ends

    def window(self, evaluation: dict[str, float]) -> Window:
        """What happened between the two marks."""
        first, last = self._marks
        seconds = last.clock - first.clock
        stages = {
            name: end - first.stages.get(name, 0.0)
            for name, end in last.stages.items()
            if end > first.stages.get(name, 0.0)
        }
        if stages:
            stages["rest"] = seconds - sum(stages.get(name, 0.0) for name in STAGES)
        frames, updates = last.frames - first.frames, last.updates - first.updates
        return Window(seconds, frames, updates, stages, evaluation)


@contextmanager
def open_run(**settings: Any) -> Iterator[Trainer]:
    """A run of train.py with these settings, without evaluations and checkpoints."""
    with tempfile.TemporaryDirectory() as run_dir:
        arguments = ["--run-dir", run_dir, "--eval-every-frames", "0"]
        arguments += ["--checkpoint-minutes", str(NEVER)]
        for name, value in settings.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments += [f"--{flag}", str(value)]
        trainer = build_trainer(parse_arguments(arguments))
        try:
            yield trainer
        finally:
            trainer.close()


@contextmanager
def one_set_of_environments() -> Iterator[None]:
    """Within it, runs of the same game and number of environments play in the same ones."""
    built: dict[tuple[str, int], Any] = {}
    make = training_environments.make_env

    def make_env(config: TrainConfig, game: str, *others: Any, **named: Any) -> Any:
        key = game, config.num_envs
        if key not in built:
            built[key] = Reused(make(config, game, *others, **named))
        return built[key]

    with mock.patch("ebu.commands.trainer.make_env", make_env), ExitStack() as closing:
        try:
            yield
        finally:
            for env in built.values():
                closing.callback(env.env.close)


class Reused:
    """Environments that stay open when a run closes them: the next one resets them."""

    def __init__(self, env: VectorEnvironment) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def close(self) -> None:
        # A run that failed may have left a step begun.
        with suppress(RuntimeError):
            self.env.recv()


def time_ours(contender: Contender, conditions: Conditions, seed: int) -> Window:
    """Time a run of train.py from within."""
    shared = ("game", "updates_per_step", "learning_starts", "replay_capacity", "device", "threads")
    with open_run(
        agent=contender.trainer,
        frames=NEVER,
        seed=seed,
        num_envs=contender.num_envs,
        network="nature",
        batch_size=BATCH_SIZE,
        epsilon_start=EPSILON,
        epsilon_end=EPSILON,
        precision=contender.precision,
        deterministic=contender.deterministic,
        **{name: getattr(conditions, name) for name in shared},
    ) as trainer:
        clock = WindowClock(conditions)

        class Watch:
            """Takes the progress bar's place, which is updated after every vector step."""

            def update(self, *_: Any, **__: Any) -> None:
                if clock.look(trainer.now()):
                    trainer.stop_requested = True

        trainer.run(NEVER, cast(Progress, Watch()))
        return clock.window(time_evaluation(trainer) if conditions.evaluate else {})


def time_evaluation(trainer: Trainer) -> dict[str, float]:
    """Play the games of an evaluation in training twice, and time the second time.

    The first captures graphs, once in a run. Returns seconds: `vector_step`, of one step of all
    games in parallel; `besides`, of the rest: making environments, filming the best game.
    """
    for _ in range(2):
        looks: list[float] = []

        def look(looks: list[float] = looks) -> bool:
            # Asked before every vector step whether to stop.
            looks.append(time.perf_counter())
            return False

        started = time.perf_counter()
        trainer.evaluation.evaluate(trainer.frames, look)
        seconds = time.perf_counter() - started
    playing = looks[-1] - looks[0]
    return {"vector_step": playing / (len(looks) - 1), "besides": seconds - playing}


def in_process(task: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


@dataclass(frozen=True)
class PlaySettings(GameSettings, DeviceSettings):
    """Random play that fills a replay memory to learn from."""

    num_envs: Positive = 16
    """Environments that play."""
    steps: Annotated[int, Bounds(least=100)] = 1_200
    """Vector steps of play in the memory; a game of Pong is over in a thousand."""
    deterministic: bool = False
    """On a GPU, take only operations that give the same bits every time."""


@contextmanager
def random_play(settings: PlaySettings) -> Iterator[Trainer]:
    """A run that has played at random and learnt nothing.

    Its replay memory holds all steps, and at least one segment of each environment.
    """
    transitions = settings.steps * settings.num_envs
    frames = transitions * FRAMES_PER_STEP
    flags = ("game", "num_envs", "seed", "threads", "device", "deterministic")
    with open_run(
        frames=frames,
        learning_starts=NEVER,
        # A quarter of a ring, after which a segment is cut, is less than was played.
        replay_capacity=3 * transitions,
        epsilon_start=1,
        epsilon_end=1,
        **{name: getattr(settings, name) for name in flags},
    ) as trainer:
        trainer.run(frames)
        yield trainer


def network_arguments(trainer: Trainer) -> dict[str, Any]:
    """Arguments of a learner that fit the environments and the device of a run."""
    return {
        "stack": trainer.env.stack,
        "frame_shape": trainer.env.frame_shape,
        "num_actions": trainer.env.num_actions,
        "device": trainer.replay.device,
    }
