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
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import (
    markdown,
    publish,
    require_at_least,
    require_writable,
    say,
    stated,
    times,
)
from ebu.errors import EbuError
from ebu.run.cli import parse, run_command
from ebu.run.machine import device_named
from ebu.targets import backward_targets, backward_targets_loop, backward_targets_scan

NUM_ACTIONS = 18
GAMMA = 0.99
# Some float32 roundings; times of results that differ by more would not compare.
LARGEST_DIFFERENCE = 1e-6


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    steps: tuple[int, ...] = (32, 128, 512, 2_048, 8_192, 32_768)
    """T: numbers of agent steps in the episode."""
    learners: tuple[int, ...] = (1, 3, 11)
    """K: numbers of learners, each with its own β."""
    threads: int = 1
    """Threads of torch."""
    device: str = "auto"
    """auto, cpu or cuda: where the values lie."""
    repetitions: int = 5
    """Timed calls of each way."""
    seed: int = 0
    """Seed of the rewards, values and actions."""
    json: Path | None = None
    """Write settings, machine and all figures to this file."""


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


def by_loop(episode: Episode) -> Tensor:
    """The reference, its result brought back to the device."""
    return _targets(backward_targets_loop, episode).to(episode.rewards.device)


def by_scan(episode: Episode) -> Tensor:
    """Rounds of composing the maps of the steps."""
    return _targets(backward_targets_scan, episode)


def as_used(episode: Episode) -> Tensor:
    """What training does on this device."""
    return _targets(backward_targets, episode)


def _targets(function: Callable[..., Tensor], episode: Episode) -> Tensor:
    return function(
        episode.rewards,
        episode.next_values,
        episode.actions,
        episode.terminated,
        gamma=GAMMA,
        beta=episode.beta,
    )


WAYS: dict[str, Callable[[Episode], Tensor]] = {
    "loop": by_loop,
    "scan": by_scan,
    "used": as_used,
}


def difference(episode: Episode) -> float:
    """The largest between any two of the ways, relative to the target or to 1 if that is larger."""
    results = torch.stack([way(episode).double() for way in WAYS.values()])
    apart = results.amax(0) - results.amin(0)
    return float((apart / results.abs().amax(0).clamp(min=1.0)).max())


def measure(steps: int, learners: int, settings: Settings, device: torch.device) -> dict[str, Any]:
    """The figures of one T and K. Raises `EbuError` if the ways do not agree."""
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


def table(targets: list[dict[str, Any]]) -> str:
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
        for each in targets
    ]
    return markdown((*header, "largest relative difference"), rows)


def main() -> None:
    """Measure, print the table and write the file."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="python -m benchmarks.target_speed",
        description="Backward targets: the loop, the scan and what training uses.",
    )
    require_at_least(1, settings, "steps", "learners", "threads", "repetitions")
    require_at_least(0, settings, "seed")
    require_writable(settings.json)
    device = device_named(settings.device)
    torch.set_num_threads(settings.threads)
    context = stated(settings)
    targets = []
    for learners in settings.learners:
        for steps in settings.steps:
            say(f"T={steps}, K={learners}")
            targets.append(measure(steps, learners, settings, device))
    publish(context, {"targets": targets}, table(targets), settings.json)


if __name__ == "__main__":
    run_command(main)
