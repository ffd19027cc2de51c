"""Frames per second of whole training runs, against Stable-Baselines3's DQN on request.

    python -m benchmarks.train_speed --against sb3 --threads 2 --json speed.json

Every measurement is a run in a fresh process: environments, acting, replay memory, target passes
and gradient steps; see `runs`. Rounds are interleaved, and a ratio is taken within a round.
Evaluations and checkpoints are off; our logs are on. Frames are emulator frames, 4 an agent step.

Each round begins with the machine's rates, see `limits`: the share that a run reaches of the frames
per second that its arithmetic alone would allow. Seconds of a stage are those of the process that
trains. On a GPU it launches work asynchronously and waits for results in `acting`; a part of a CUDA
graph, such as the target pass of DQN, has no time of its own.

The results file holds `rounds` (of each run `seconds`, `frames`, `updates`, and the seconds of its
`stages` and of a step of its `evaluation`), the `machine_rates` of each round, and over all rounds:

| key | meaning |
| --- | --- |
| runs | of each run, over the rounds: |
| · frames_per_second, updates_per_second | `min`, `median`, `max` |
| · of_limit | of ours: frames/s over those that its arithmetic alone would allow |
| · shares, seconds_per_million_frames | of ours: medians of each stage; `target_passes` and |
| | `targets` are parts of `learning` |
| · over_sb3, over_usual | of ours: frames/s over those of SB3's fastest in the same round; with |
| | --deterministic over those without it |
| · evaluation | of ours: `seconds` of the longest evaluation of the default preset, its `share` |
| | of a run at this speed, and the run's `frames_per_second` with it |
| limits | of each precision: `frames_per_second`, `seconds_per_million_frames` of each stage |
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, Self

from benchmarks.limits import Limits, measure_limits
from benchmarks.measurement import (
    interleave,
    medians,
    ranged,
    require_installed,
    run_benchmark,
    say,
    spread,
)
from benchmarks.runs import (
    BATCH_SIZE,
    EPSILON,
    FRAMES_PER_STEP,
    PARTS_OF_LEARNING,
    Conditions,
    Contender,
    Window,
    in_process,
    time_ours,
)
from benchmarks.sb3 import sb3_schedule, time_sb3
from ebu.commands.presets import DEFAULT
from ebu.errors import EbuError, UsageError
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.hardware import all_cores
from ebu.run.settings import Positive
from ebu.schedules import evaluation_schedule
from envs.protocols import PROTOCOLS

COLUMNS = ("acting", "sending", "learning", *PARTS_OF_LEARNING, "emulator_wait", "storing", "rest")
RATES = "the machine's rates"
SCHEDULE = {
    "network": "nature",
    "batch_size": BATCH_SIZE,
    "frames_per_agent_step": FRAMES_PER_STEP,
    "epsilon": EPSILON,
    "evaluations": "off",
    "checkpoints": "off",
}


@dataclass(frozen=True)
class Settings(Conditions):
    """What is measured."""

    against: Literal["sb3"] | None = None
    """The trainer to compare with; without it only ours is timed."""
    agents: tuple[Literal["ebu", "dqn"], ...] = ("ebu", "dqn")
    """Our agents."""
    precisions: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32",)
    """Precisions of ours, each in runs of its own; SB3 always computes in float32."""
    deterministic: bool = False
    """Measure ours also with train.py's --deterministic, for what it costs on a GPU."""
    num_envs: Positive = 8
    """Environments of ours."""
    sb3_envs: tuple[Positive, ...] = (1, 8)
    """Numbers of environments SB3 is measured with; its fastest counts."""
    pairs: Positive = 3
    """Rounds; each measures everything once."""
    minutes: float | None = None
    """Start no round that would end later than this many minutes after the first."""

    def checked(self) -> Self:
        """With the game's id."""
        if not self.ours + self.theirs:
            raise UsageError("nothing to measure: give --agents and --precisions, --against or all")
        for peer in self.theirs:
            sb3_schedule(peer.num_envs, self.updates_per_step)
        if self.against:
            require_installed("stable_baselines3", "Stable-Baselines3")
            require_installed("cv2", "OpenCV")
        return super().checked()

    @property
    def ours(self) -> list[Contender]:
        """Our runs of one round, in order."""
        return [
            Contender(agent, self.num_envs, precision, deterministic)
            for precision in self.precisions
            for agent in self.agents
            for deterministic in ([False, True] if self.deterministic else [False])
        ]

    @property
    def theirs(self) -> list[Contender]:
        """SB3's runs of one round, in order."""
        return [
            Contender("sb3", num_envs, processes=processes)
            for num_envs in (self.sb3_envs if self.against else ())
            for processes in ([False, True] if num_envs > 1 else [False])
        ]


@dataclass(frozen=True)
class Round:
    """What one round measured: the machine's rates, and every run by its name."""

    limits: Limits
    windows: dict[str, Window]

    def speed(self, name: str) -> float:
        """Frames per second of a run."""
        return self.windows[name].frames / self.windows[name].seconds


def time_run(contender: Contender, conditions: Conditions, number: int) -> Window:
    """Time one run of a round in a process of its own.

    Raises `EbuError` if the run did not make its gradient steps: its speed would mean nothing.
    """
    task = time_sb3 if contender.trainer == "sb3" else time_ours
    window = in_process(task, contender, conditions, conditions.seed + number)
    per_step = conditions.updates_per_step
    expected = window.frames / FRAMES_PER_STEP * per_step
    if abs(window.updates - expected) > 0.01 * expected + contender.num_envs * max(1.0, per_step):
        raise EbuError(
            f"{contender.name} made {window.updates} gradient steps in {window.frames} frames "
            f"where {expected:.0f} are due: the figures would not compare"
        )
    say(f"{contender.name}: {window.frames / window.seconds:,.0f} frames/s")
    return window


def play_rounds(settings: Settings) -> list[Round]:
    """Measure everything, round by round."""
    tasks: dict[str, Callable[[int], Any]] = {
        RATES: lambda _: in_process(measure_limits, settings, settings.precisions)
    }
    for each in settings.ours + settings.theirs:
        tasks[each.name] = partial(time_run, each, settings)
    rounds = interleave(tasks, settings.pairs, settings.minutes)
    return [Round(measured.pop(RATES), measured) for measured in rounds]


def summarise(rounds: list[Round], settings: Settings) -> dict[str, Any]:
    """The figures over all rounds, as the head of this file lists them."""
    per_step = settings.updates_per_step
    cores = min(settings.threads, settings.num_envs, all_cores())
    peers = [peer.name for peer in settings.theirs]
    runs: dict[str, dict[str, Any]] = {}
    for run in settings.ours + settings.theirs:
        windows = [each.windows[run.name] for each in rounds]
        runs[run.name] = figures = {
            "frames_per_second": spread(each.speed(run.name) for each in rounds),
            "updates_per_second": spread(each.updates / each.seconds for each in windows),
        }
        if run.name in peers:
            continue
        figures["of_limit"] = spread(
            each.speed(run.name) / each.limits.frames_per_second(run.precision, per_step)
            for each in rounds
        )
        figures["shares"] = medians(divide(each.stages, each.seconds) for each in windows)
        figures["seconds_per_million_frames"] = medians(
            divide(each.stages, each.frames / 1e6) for each in windows
        )
        usual = [replace(run, deterministic=False).name] if run.deterministic else []
        for key, others in (("over_sb3", peers), ("over_usual", usual)):
            if others:
                figures[key] = spread(
                    each.speed(run.name) / max(map(each.speed, others)) for each in rounds
                )
        if settings.evaluate:
            figures["evaluation"] = evaluation_share(
                medians(each.evaluation for each in windows),
                figures["frames_per_second"]["median"],
            )
    limits = {
        precision: {
            "frames_per_second": spread(
                each.limits.frames_per_second(precision, per_step) for each in rounds
            ),
            "seconds_per_million_frames": medians(
                each.limits.seconds_per_million_frames(precision, per_step, cores)
                for each in rounds
            ),
        }
        for precision in settings.precisions
    }
    return {"runs": runs, "limits": limits}


def divide(values: Mapping[str, float], unit: float) -> dict[str, float]:
    """Each value divided by a unit."""
    return {key: value / unit for key, value in values.items()}


def evaluation_share(seconds: dict[str, float], frames_per_second: float) -> dict[str, float]:
    """The time of the default preset's evaluations at their longest.

    Its games are played in parallel, so one that lasts up to the protocol's cap makes an
    evaluation e seconds long. share = e / (e + t), with t for the frames to the first evaluation,
    the shortest distance of two.
    """
    vector_steps = PROTOCOLS[DEFAULT.protocol].eval_max_frames / FRAMES_PER_STEP
    evaluating = vector_steps * seconds["vector_step"] + seconds["besides"]
    frames = evaluation_schedule(DEFAULT.loop.eval_every_frames).next
    whole = evaluating + frames / frames_per_second
    return {
        "seconds": evaluating,
        "share": evaluating / whole,
        "frames_per_second": frames / whole,
    }


def table(figures: Mapping[str, Any]) -> str:
    """The summary as Markdown tables."""
    runs, stages, lines = [], [], []
    for name, run in figures["runs"].items():
        ratios = (ranged(run[key]) if key in run else "" for key in ("over_sb3", "over_usual"))
        speeds = ranged(run["frames_per_second"], ",.0f"), run["updates_per_second"]["median"]
        reached = f"{run['of_limit']['median']:.1%}" if "of_limit" in run else ""
        runs.append((name, speeds[0], f"{speeds[1]:,.1f}", reached, *ratios))
        if "shares" in run:
            cells = (
                f"{run['seconds_per_million_frames'][column]:,.1f} ({share:.0%})"
                if (share := run["shares"].get(column))
                else ""
                for column in COLUMNS
            )
            stages.append((name, *cells))
        if "evaluation" in run:
            share = run["evaluation"]
            lines.append(
                f"\n{name}: the longest evaluation of the default preset takes "
                f"{share['seconds']:.1f} s, {share['share']:.1%} of a run; with it "
                f"{share['frames_per_second']:,.0f} frames/s"
            )
    for precision, limit in figures["limits"].items():
        speed = f"{limit['frames_per_second']['median']:,.0f}"
        runs.append((f"limit of its arithmetic, {precision}", speed, "", "100%", "", ""))
        seconds = limit["seconds_per_million_frames"]
        cells = (f"{seconds[column]:,.1f}" if column in seconds else "" for column in COLUMNS)
        stages.append((f"limit, {precision}", *cells))
    header = ("run", "frames/s, median (min-max)", "updates/s", "of the limit")
    return "\n".join(
        (
            markdown.table(
                (*header, "over SB3's fastest", "over it without --deterministic"), runs
            ),
            "\nSeconds per million frames (share of the run):\n",
            markdown.table(("run", *(column.replace("_", " ") for column in COLUMNS)), stages),
            *lines,
        )
    )


def measure(settings: Settings) -> dict[str, Any]:
    """Every measurement and the summary."""
    # Read by the libraries of the spawned processes when they load.
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    rounds = play_rounds(settings)
    return {
        "rounds": [
            {name: asdict(window) for name, window in each.windows.items()} for each in rounds
        ],
        "machine_rates": [asdict(each.limits) for each in rounds],
        **summarise(rounds, settings),
    }


main = partial(
    run_benchmark,
    Settings,
    measure,
    table,
    packages=("stable-baselines3", "opencv-python-headless"),
    conditions={"schedule": SCHEDULE},
)

if __name__ == "__main__":
    run_command(main)
