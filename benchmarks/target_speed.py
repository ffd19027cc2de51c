"""Backward targets: the loop against the scan and what training uses, over T steps and K learners.

    python -m benchmarks.target_speed --json targets.json

Three ways to the same targets of one episode, from values that lie on the device to targets that
lie there: `loop`, the reference `backward_targets_loop`, Algorithm 2 as printed for all K at once
with numpy; `scan`, `backward_targets_scan`; `used`, `backward_targets`: on the CPU the recursion in
Python's floats, on a GPU one kernel. K = 1 has a scalar β of 0.5; more learners have β from 0 to 1,
and values of their own.

The results file holds `targets`, a list of one entry for each T and K: `steps`, `learners`,
`milliseconds` (for each way the median), `ratio` (of `loop` and `scan` over `used`) and
`difference`: the largest between any two of the three, relative to the target or to 1, the size of
a clipped reward, where the target is smaller.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import BenchmarkSettings, markdown, run_benchmark, say, times
from ebu.errors import EbuError, UsageError
from ebu.run.cli import run_command
from ebu.run.machine import device_named, prepare_torch
from ebu.run.settings import Device, Positive
from ebu.targets import backward_targets, backward_targets_loop, backward_targets_scan

NUM_ACTIONS = 18
GAMMA = 0.99
# Some float32 roundings; times of results that differ by more would not compare.
LARGEST_DIFFERENCE = 1e-6


@dataclass(frozen=True)
class Settings(BenchmarkSettings):
    """What is measured."""

    steps: tuple[Positive, ...] = (32, 128, 512, 2_048, 8_192, 32_768)
    """T: numbers of agent steps in the episode."""
    learners: tuple[Positive, ...] = (1, 3, 11)
    """K: numbers of learners, each with its own β."""
    threads: Positive = 1
    """Threads of torch."""
    device: Device = "auto"
    """auto, cpu or cuda: where the values lie."""
    repetitions: Positive = 5
    """Timed calls of each way."""


@dataclass(frozen=True)
class Episode:
    """What the targets of one episode are computed from."""

    rewards: Tensor  # (T,) float32
    next_values: Tensor  # (T, A) or (K, T, A) float32
    actions: Tensor  # (T,) int64
    terminated: Tensor  # () bool
    beta: float | Tensor  # scalar, or (K,) on the device


def made_up(steps: int, learners: int, seed: int, device: torch.device) -> Episode:
    """An episode of clipped, mostly absent rewards that terminates."""
    generator = torch.Generator().manual_seed(seed)
    # One in twenty is -1 or 1.
    rewards = (torch.randn(steps, generator=generator) / 4).round().clamp(-1, 1)
    shape = (steps, NUM_ACTIONS) if learners == 1 else (learners, steps, NUM_ACTIONS)
    next_values = torch.randn(shape, generator=generator)
    actions = torch.randint(NUM_ACTIONS, (steps,), generator=generator)
    return Episode(
        rewards.to(device),
        next_values.to(device),
        actions.to(device),
        torch.tensor(True, device=device),
        0.5 if learners == 1 else torch.linspace(0.0, 1.0, learners, device=device),
    )


def _targets(function: Callable[..., Tensor]) -> Callable[[Episode], Tensor]:
    """Targets that lie on the episode's device, by a function of `ebu.targets`."""
    return lambda episode: function(
        episode.rewards,
        episode.next_values,
        episode.actions,
        episode.terminated,
        gamma=GAMMA,
        beta=episode.beta,
    ).to(episode.rewards.device)


WAYS = {
    "loop": _targets(backward_targets_loop),
    "scan": _targets(backward_targets_scan),
    "used": _targets(backward_targets),
}


def difference(episode: Episode) -> float:
    """The largest between any two of the ways, relative to the target or to 1 if that is larger."""
    results = torch.stack([way(episode).double() for way in WAYS.values()])
    apart = results.amax(0) - results.amin(0)
    return float((apart / results.abs().amax(0).clamp(min=1.0)).max())


def measure(settings: Settings) -> dict[str, Any]:
    """The figures of every T and K. Raises `EbuError` if the ways do not agree."""
    device = device_named(settings.device)
    prepare_torch(device, settings.threads)
    targets = []
    for learners in settings.learners:
        for steps in settings.steps:
            say(f"T={steps}, K={learners}")
            targets.append(measure_one(steps, learners, settings, device))
    return {"targets": targets}


def measure_one(
    steps: int, learners: int, settings: Settings, device: torch.device
) -> dict[str, Any]:
    """The figures of one T and K."""
    episode = made_up(steps, learners, settings.seed, device)
    largest = difference(episode)
    if not largest <= LARGEST_DIFFERENCE:
        raise EbuError(
            f"the targets of T={steps}, K={learners} differ by {largest:.1e} between the ways to "
            "compute them: the times would not compare"
        )
    milliseconds = {
        name: 1e3
        * statistics.median(times(lambda way=way: way(episode), settings.repetitions, device))
        for name, way in WAYS.items()
    }
    return {
        "steps": steps,
        "learners": learners,
        "milliseconds": milliseconds,
        "ratio": {name: milliseconds[name] / milliseconds["used"] for name in ("loop", "scan")},
        "difference": largest,
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    header = ("T", "K", "loop, ms", "scan, ms", "used, ms", "loop / used", "scan / used")
    rows = [
        (
            str(each["steps"]),
            str(each["learners"]),
            *(f"{each['milliseconds'][way]:.3f}" for way in WAYS),
            *(f"{ratio:.1f}" for ratio in each["ratio"].values()),
            f"{each['difference']:.1e}",
        )
        for each in figures["targets"]
    ]
    return markdown((*header, "largest relative difference"), rows)


def check(settings: Settings) -> Settings:
    """The settings. Raises `UsageError` if they leave nothing to measure."""
    if not (settings.steps and settings.learners):
        raise UsageError("nothing to measure: give --steps and --learners")
    return settings


def main() -> None:
    """Measure, print the table and write the file."""
    run_benchmark(
        Settings,
        measure,
        table,
        description="Backward targets: the loop, the scan and what training uses.",
        check=check,
    )


if __name__ == "__main__":
    run_command(main)
