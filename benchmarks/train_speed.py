"""Frames per second of whole training runs, against Stable-Baselines3's DQN on request.

    python benchmarks/train_speed.py --against sb3 --threads 2 --json speed.json

Every measurement is a run of its own in a fresh process: environments, acting, replay memory,
target passes and gradient steps, with the Nature network, minibatches of 32 and one gradient step
per 4 agent steps on either side. The clock starts once `warmup_updates` gradient steps are done
and stops `window` agent steps later. Runs are interleaved (A B C A B C ...), because the speed of
a machine drifts, and a ratio is taken within a round. Evaluations and checkpoints are switched
off; our logs are on.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

ROOT = Path(__file__).resolve().parents[1]
# The training script stands beside the packages and is not installed with them.
sys.path.insert(0, str(ROOT))

from ebu.commandline import parse, run_command  # noqa: E402
from ebu.errors import EbuError, UsageError  # noqa: E402

if TYPE_CHECKING:
    from ebu.monitoring import Progress

FRAMES_PER_STEP = 4
STEPS_PER_UPDATE = 4
BATCH_SIZE = 32
# Most of a run is played near this share of random actions, and only greedy ones need the network.
EPSILON = 0.1
# Agent steps of play before the first gradient step.
LEARNING_STARTS = 1_000
NEVER = 10**9


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    against: Literal["sb3"] | None = None
    """The trainer to compare with; without it only ours is timed."""
    game: str = "pong"
    """An Atari game."""
    agents: tuple[Literal["ebu", "dqn"], ...] = ("ebu", "dqn")
    """Our agents."""
    pairs: int = 3
    """Rounds; each measures everything once."""
    threads: int = 2
    """Threads of torch, the same for all."""
    num_envs: int = 8
    """Environments of ours."""
    sb3_envs: tuple[int, ...] = (1, 8)
    """Numbers of environments SB3 is measured with; its fastest counts."""
    precision: str = "float32"
    """Precision of ours; SB3 always computes in float32."""
    device: str = "auto"
    """auto, cpu or cuda, for all."""
    window: int = 5_000
    """Agent steps in the timed part of a run."""
    warmup_updates: int = 200
    """Gradient steps before it."""
    replay_capacity: int = 100_000
    """Transitions in the replay memory, the same for all."""
    seed: int = 0
    """Seed of the first round; each round adds one."""
    json: Path | None = None
    """Write settings, machine, every measurement and the summary to this file."""


@dataclass(frozen=True)
class Contender:
    """One kind of run: a trainer with its number of environments, in processes or not."""

    trainer: str
    num_envs: int
    processes: bool = False

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.trainer}, N={self.num_envs}" + (" in processes" if self.processes else "")


@dataclass(frozen=True)
class Window:
    """What happened while the clock ran."""

    seconds: float
    frames: int
    updates: int


def contenders(settings: Settings) -> list[Contender]:
    """Everything to be measured in one round, in order."""
    listed = [Contender(agent, settings.num_envs) for agent in settings.agents]
    if settings.against == "sb3":
        for num_envs in settings.sb3_envs:
            listed.append(Contender("sb3", num_envs))
            if num_envs > 1:
                listed.append(Contender("sb3", num_envs, processes=True))
    return listed


class Stopwatch:
    """Notes where the timed window of a run begins and where it ends."""

    def __init__(self, settings: Settings) -> None:
        self._warmup_updates = settings.warmup_updates
        self._window = settings.window
        self._marks: list[tuple[float, int, int]] = []

    def look(self, agent_steps: int, updates: int) -> bool:
        """Called after every vector step; returns whether the window is over."""
        begins = not self._marks and updates >= self._warmup_updates
        ends = len(self._marks) == 1 and agent_steps >= self._marks[0][1] + self._window
        if begins or ends:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._marks.append((time.perf_counter(), agent_steps, updates))
        return ends

    def window(self) -> Window:
        """What happened between the two marks."""
        (started, first_step, first_update), (ended, last_step, last_update) = self._marks
        steps = last_step - first_step
        return Window(ended - started, steps * FRAMES_PER_STEP, last_update - first_update)


def time_ours(contender: Contender, settings: Settings, seed: int) -> Window:
    """Time a run of train.py from within."""
    from presets import parse_arguments
    from train import build_trainer

    with tempfile.TemporaryDirectory() as run_dir:
        flags = {
            "game": settings.game,
            "agent": contender.trainer,
            "run-dir": run_dir,
            "frames": NEVER,
            "seed": seed,
            "num-envs": contender.num_envs,
            "network": "nature",
            "batch-size": BATCH_SIZE,
            "updates-per-step": 1 / STEPS_PER_UPDATE,
            "learning-starts": LEARNING_STARTS,
            "replay-capacity": settings.replay_capacity,
            "epsilon-start": EPSILON,
            "epsilon-end": EPSILON,
            "eval-every-frames": 0,
            "checkpoint-minutes": NEVER,
            "device": settings.device,
            "precision": settings.precision,
            "threads": settings.threads,
        }
        arguments = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        trainer = build_trainer(parse_arguments(arguments))
        stopwatch = Stopwatch(settings)

        class Watch:
            """Stands where the progress bar does, which is told of every vector step."""

            def update(self, *_: Any, **__: Any) -> None:
                if stopwatch.look(trainer.agent_steps, trainer.updates):
                    trainer.stop_requested = True

        trainer.run(NEVER, cast("Progress", Watch()))
        trainer.close()
        return stopwatch.window()


def sb3_rhythm(num_envs: int) -> tuple[int, int]:
    """Vector steps between two calls of SB3's training and the gradient steps in each.

    One gradient step per 4 agent steps: every 4th step with 1 environment, 2 every step with 8.
    """
    vector_steps = 1
    while num_envs * vector_steps % STEPS_PER_UPDATE:
        vector_steps += 1
    return vector_steps, num_envs * vector_steps // STEPS_PER_UPDATE


def time_sb3(contender: Contender, settings: Settings, seed: int) -> Window:
    """Time a run of Stable-Baselines3's DQN on the same game, preprocessed in the same way."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    from envs.games import canonical_game

    torch.set_num_threads(settings.threads)
    name = "".join(word.capitalize() for word in canonical_game(settings.game).split("_"))

    def make_game() -> Any:
        # Also called in processes where nobody has registered the games yet.
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
    vector_steps, gradient_steps = sb3_rhythm(contender.num_envs)
    model = DQN(
        "CnnPolicy",
        environment,
        batch_size=BATCH_SIZE,
        buffer_size=settings.replay_capacity,
        learning_starts=LEARNING_STARTS,
        train_freq=(vector_steps, "step"),
        gradient_steps=gradient_steps,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        device=settings.device,
        seed=seed,
    )
    stopwatch = Stopwatch(settings)

    def watch(_: dict[str, Any], __: dict[str, Any]) -> bool:
        return not stopwatch.look(model.num_timesteps, model._n_updates)

    model.learn(NEVER, callback=watch, log_interval=NEVER)
    environment.close()
    return stopwatch.window()


def measure(contender: Contender, settings: Settings, seed: int) -> Window:
    """Measure one run in a process of its own.

    Raises `EbuError` if the run did not make its gradient steps: its speed would mean nothing.
    """
    task: Callable[[Contender, Settings, int], Window]
    task = time_sb3 if contender.trainer == "sb3" else time_ours
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        window = pool.submit(task, contender, settings, seed).result()
    expected = window.frames / FRAMES_PER_STEP / STEPS_PER_UPDATE
    if abs(window.updates - expected) > 0.01 * expected + contender.num_envs:
        raise EbuError(
            f"{contender.name} made {window.updates} gradient steps in {window.frames} frames "
            f"where {expected:.0f} are due: the figures would not compare"
        )
    return window


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and greatest of several measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarise(rounds: list[dict[str, Window]], settings: Settings) -> dict[str, Any]:
    """Speeds of every contender, and ours over SB3's fastest, round by round.

    `ratio` is the median over the rounds of (ours / the fastest of SB3 in the same round).
    """
    speeds = {
        name: {
            "frames_per_second": spread(
                [each[name].frames / each[name].seconds for each in rounds]
            ),
            "updates_per_second": spread(
                [each[name].updates / each[name].seconds for each in rounds]
            ),
        }
        for name in rounds[0]
    }
    ratios: dict[str, dict[str, float]] = {}
    peers = [one.name for one in contenders(settings) if one.trainer == "sb3"]
    if peers:
        for agent in settings.agents:
            name = Contender(agent, settings.num_envs).name
            ratios[agent] = spread(
                [
                    min(each[peer].seconds / each[peer].frames for peer in peers)
                    / (each[name].seconds / each[name].frames)
                    for each in rounds
                ]
            )
    return {
        "speeds": speeds,
        "ratios": ratios,
        "ratio": {agent: values["median"] for agent, values in ratios.items()},
    }


def machine() -> dict[str, Any]:
    """The hardware, as far as the system tells, and what else it was doing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load_average_before": os.getloadavg()[0],
    }


def versions(settings: Settings) -> dict[str, str]:
    """The versions of what was measured."""
    packages = ["ebu", "torch", "numpy", "gymnasium", "ale-py"]
    packages += ["stable-baselines3", "opencv-python-headless"] if settings.against else []
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def table(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| run | frames/s, median (min-max) | updates/s, median |",
        "| --- | --- | --- |",
    ]
    for name, speed in summary["speeds"].items():
        frames, updates = speed["frames_per_second"], speed["updates_per_second"]
        lines.append(
            f"| {name} | {frames['median']:.0f} ({frames['min']:.0f}-{frames['max']:.0f}) "
            f"| {updates['median']:.1f} |"
        )
    for agent, ratio in summary["ratios"].items():
        lines.append(
            f"\nratio, {agent} over SB3's fastest of the round: {ratio['median']:.2f} "
            f"({ratio['min']:.2f}-{ratio['max']:.2f})"
        )
    return "\n".join(lines)


def check(settings: Settings) -> None:
    """Refuse what cannot be measured. Raises `UsageError`."""
    for name in ("pairs", "threads", "num_envs", "window", "warmup_updates", "replay_capacity"):
        if getattr(settings, name) < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} is {getattr(settings, name)}; give 1 or more"
            )
    if any(num_envs < 1 for num_envs in settings.sb3_envs):
        raise UsageError("--sb3-envs takes numbers of environments, 1 or more each")
    if not contenders(settings):
        raise UsageError("nothing to measure: give --agents, --against or both")
    if settings.json and not settings.json.absolute().parent.is_dir():
        raise UsageError(f"--json {settings.json}: there is no such folder to write to")
    if settings.against:
        try:
            metadata.version("stable-baselines3")
        except metadata.PackageNotFoundError:
            raise UsageError(
                "Stable-Baselines3 is not installed: pip install -c constraints.txt -e '.[bench]'"
            ) from None


def main() -> None:
    """Measure, print the table and write the file."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="train_speed.py",
        description="Frames per second of whole training runs, ours and others.",
    )
    check(settings)
    # Read by the libraries of the spawned processes when they load.
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    hardware = machine()
    rounds: list[dict[str, Window]] = []
    for pair in range(settings.pairs):
        rounds.append({})
        for contender in contenders(settings):
            window = measure(contender, settings, settings.seed + pair)
            rounds[-1][contender.name] = window
            speed = window.frames / window.seconds
            print(
                f"round {pair + 1}/{settings.pairs}  {contender.name}: {speed:.0f} frames/s",
                file=sys.stderr,
                flush=True,
            )
    summary = summarise(rounds, settings)
    schedule = {
        "network": "nature",
        "batch_size": BATCH_SIZE,
        "agent_steps_per_update": STEPS_PER_UPDATE,
        "frames_per_agent_step": FRAMES_PER_STEP,
        "epsilon": EPSILON,
        "learning_starts": LEARNING_STARTS,
        "evaluations": "off",
        "checkpoints": "off",
    }
    report = {
        "machine": hardware,
        "versions": versions(settings),
        "settings": {**asdict(settings), "json": None},
        "schedule": schedule,
        "rounds": [{name: asdict(window) for name, window in each.items()} for each in rounds],
        **summary,
    }
    for title in ("machine", "versions", "settings", "schedule"):
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in report[title].items()))
    print(f"\n{table(summary)}")
    if settings.json:
        settings.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
