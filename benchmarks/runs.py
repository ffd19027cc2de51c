"""Whole training runs, each timed in a process of its own: ours and Stable-Baselines3's.

A run plays until `warmup_updates` gradient steps are done; the clock then runs for `window` agent
steps. Both sides get the Nature network, minibatches of 32 and the same gradient steps per agent
step, without evaluations and checkpoints.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing import get_context
from typing import Annotated, Any, TypeVar, cast

import torch

from benchmarks.measurement import BenchmarkSettings
from ebu.errors import EbuError, UsageError
from ebu.run.progress import Progress
from ebu.run.settings import Bounds, Device, NotNegative, Positive, PositiveFloat
from ebu.training import Mark, Trainer

FRAMES_PER_STEP = 4
BATCH_SIZE = 32
# Most of a run is played near this ε, and only greedy actions need the network.
EPSILON = 0.1
NEVER = 10**9
# What the stages of our loop are made of; `target_passes` and `targets` are parts of `learning`.
STAGES = ("acting", "sending", "learning", "emulator_wait", "storing")
PARTS_OF_LEARNING = ("target_passes", "targets")

# Settings of random play that are flags of train.py.
_OF_A_RUN = ("game", "num_envs", "seed", "threads", "device", "deterministic")

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Conditions(BenchmarkSettings):
    """What all runs that are compared have in common."""

    game: str = "pong"
    """An Atari game."""
    updates_per_step: PositiveFloat = 0.25
    """Gradient steps per agent step."""
    threads: Positive = 2
    """Threads of torch, the same for all."""
    device: Device = "auto"
    """auto, cpu or cuda, for all."""
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
    """One kind of run: a trainer, with what it computes in and how many games it plays.

    | field | meaning |
    | --- | --- |
    | processes | SB3's environments in processes of their own |
    """

    trainer: str
    num_envs: int
    precision: str = "float32"
    deterministic: bool = False
    processes: bool = False

    def kind(self, usual_precision: str = "float32") -> str:
        """The trainer, and what is unusual about it."""
        words = [self.trainer]
        words += [self.precision] if self.precision != usual_precision else []
        words += ["deterministic"] if self.deterministic else []
        return " ".join(words)

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.kind()}, N={self.num_envs}" + (" in processes" if self.processes else "")


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


class Stopwatch:
    """Marks where the timed window of a run begins and where it ends."""

    def __init__(self, conditions: Conditions) -> None:
        self._warmup_updates = conditions.warmup_updates
        self._frames = conditions.window * FRAMES_PER_STEP
        self._marks: list[Mark] = []

    def look(self, now: Mark) -> bool:
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


def open_run(run_dir: str, **settings: Any) -> Trainer:
    """A run of train.py with these settings, without evaluations and checkpoints on its way."""
    from ebu.commands.train_arguments import parse_arguments
    from ebu.commands.trainer import build_trainer

    arguments = ["--run-dir", run_dir, "--eval-every-frames", "0"]
    arguments += ["--checkpoint-minutes", str(NEVER)]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return build_trainer(parse_arguments(arguments))


@dataclass(frozen=True)
class PlaySettings(BenchmarkSettings):
    """Random play that fills a replay memory, to be learnt from."""

    game: str = "pong"
    """An Atari game, played at random."""
    num_envs: Positive = 16
    """Environments that play."""
    steps: Annotated[int, Bounds(least=100)] = 1_200
    """Vector steps of play in the memory; a game of Pong is over in a thousand."""
    threads: Positive = 2
    """Threads of torch."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    deterministic: bool = False
    """On a GPU, take only operations that give the same bits every time."""


@contextmanager
def random_play(settings: PlaySettings) -> Iterator[Trainer]:
    """A run that has played at random and learnt nothing.

    Its replay memory holds all steps, and at least one segment of each environment.
    """
    transitions = settings.steps * settings.num_envs
    frames = transitions * FRAMES_PER_STEP
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = open_run(
            run_dir,
            frames=frames,
            learning_starts=NEVER,
            # A quarter of a ring, after which a segment is cut, is less than was played.
            replay_capacity=3 * transitions,
            epsilon_start=1,
            epsilon_end=1,
            **{name: getattr(settings, name) for name in _OF_A_RUN},
        )
        try:
            trainer.run(frames)
            yield trainer
        finally:
            trainer.close()


def network_arguments(trainer: Trainer) -> dict[str, Any]:
    """Arguments of a learner that fit the environments and the device of a run."""
    return {
        "stack": trainer.env.stack,
        "frame_shape": trainer.env.frame_shape,
        "num_actions": trainer.env.num_actions,
        "device": trainer.replay.device,
    }


def time_ours(contender: Contender, conditions: Conditions, seed: int) -> Window:
    """Time a run of train.py from within."""
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = open_run(
            run_dir,
            game=conditions.game,
            agent=contender.trainer,
            frames=NEVER,
            seed=seed,
            num_envs=contender.num_envs,
            network="nature",
            batch_size=BATCH_SIZE,
            updates_per_step=conditions.updates_per_step,
            learning_starts=conditions.learning_starts,
            replay_capacity=conditions.replay_capacity,
            epsilon_start=EPSILON,
            epsilon_end=EPSILON,
            device=conditions.device,
            precision=contender.precision,
            deterministic=contender.deterministic,
            threads=conditions.threads,
        )
        stopwatch = Stopwatch(conditions)

        class Watch:
            """Takes the progress bar's place, which is updated after every vector step."""

            def update(self, *_: Any, **__: Any) -> None:
                if stopwatch.look(trainer.now()):
                    trainer.stop_requested = True

        trainer.run(NEVER, cast(Progress, Watch()))
        evaluation = time_evaluation(trainer) if conditions.evaluate else {}
        trainer.close()
        return stopwatch.window(evaluation)


def time_evaluation(trainer: Trainer) -> dict[str, float]:
    """Play the games of an evaluation in training twice, and time the second time.

    The first captures graphs, which is done once in a run. Returns seconds:

    | key | meaning |
    | --- | --- |
    | vector_step | of one step of all games side by side |
    | besides | of the rest: environments are made, the beginning of the best game is filmed |
    """
    for _ in range(2):
        looks: list[float] = []

        def look(looks: list[float] = looks) -> bool:
            # Asked before every vector step whether to stop.
            looks.append(time.perf_counter())
            return False

        started = time.perf_counter()
        trainer.evaluate(trainer.frames, look)
        seconds = time.perf_counter() - started
    playing = looks[-1] - looks[0]
    return {"vector_step": playing / (len(looks) - 1), "besides": seconds - playing}


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
    stopwatch = Stopwatch(conditions)

    def watch(_: dict[str, Any], __: dict[str, Any]) -> bool:
        frames = model.num_timesteps * FRAMES_PER_STEP
        return not stopwatch.look(Mark(time.perf_counter(), frames, model._n_updates, {}))

    model.learn(NEVER, callback=watch, log_interval=NEVER)
    environment.close()
    return stopwatch.window({})


def measure(contender: Contender, conditions: Conditions, seed: int) -> Window:
    """Measure one run in a process of its own.

    Raises `EbuError` if the run did not make its gradient steps: its speed would mean nothing.
    """
    task = time_sb3 if contender.trainer == "sb3" else time_ours
    window = in_process(task, contender, conditions, seed)
    per_step = conditions.updates_per_step
    expected = window.frames / FRAMES_PER_STEP * per_step
    if abs(window.updates - expected) > 0.01 * expected + contender.num_envs * max(1.0, per_step):
        raise EbuError(
            f"{contender.name} made {window.updates} gradient steps in {window.frames} frames "
            f"where {expected:.0f} are due: the figures would not compare"
        )
    return window


def in_process(task: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()
