"""Backward targets: the loop against the scan and what training uses, over T steps and K learners.

    python -m benchmarks.target_speed --json targets.json

Three ways to the same targets of one episode, from values on the device to targets on the device:
`loop`, the reference `backward_targets_loop`, Algorithm 2 as printed with numpy; `scan`,
`backward_targets_scan`; `used`, `backward_targets`: on the CPU the recursion in Python's floats, on
a GPU one kernel. K = 1 has a scalar β of 0.5; more learners have β from 0 to 1, and values of their
own.

The results file holds `targets_by`, which of kernel, scan and recursion is `used`, and `targets`, a
list of one entry for each T and K: `steps`, `learners`, `milliseconds` (for each way the median),
`ratio` (of `loop` and `scan` over `used`) and `difference`: the largest between any two of the
three, relative to the target or to 1, the size of a clipped reward, where the target is smaller.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from benchmarks.measurement import (
    DeviceSettings,
    run_benchmark,
    say,
    targets_by,
    times,
)
from ebu.errors import EbuError, UsageError
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.settings import Positive
from ebu.targets import backward_targets, backward_targets_loop, backward_targets_scan

NUM_ACTIONS = 18
# Some float32 roundings; times of results that differ by more would not compare.
LARGEST_DIFFERENCE = 1e-6
WAYS: dict[str, Callable[..., Tensor]] = {
    "loop": backward_targets_loop,
    "scan": backward_targets_scan,
    "used": backward_targets,
}


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """What is measured."""

    steps: tuple[Positive, ...] = (32, 128, 512, 2_048, 8_192, 32_768)
    """T: numbers of agent steps in the episode."""
    learners: tuple[Positive, ...] = (1, 3, 11)
    """K: numbers of learners, each with its own β."""
    repetitions: Positive = 5
    """Timed calls of each way."""

    def checked(self) -> Self:
        """These settings."""
        if not (self.steps and self.learners):
            raise UsageError("nothing to measure: give --steps and --learners")
        return self


def compute_targets(way: str, steps: int, learners: int, seed: int, device: torch.device) -> Any:
    """A call that computes the targets of a made-up episode that terminates, in one of the ways.

    Rewards are clipped and mostly absent. The call returns (T,) or (K, T) on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    # One in twenty is -1 or 1.
    rewards = (torch.randn(steps, generator=generator) / 4).round().clamp(-1, 1).to(device)
    shape = (steps, NUM_ACTIONS) if learners == 1 else (learners, steps, NUM_ACTIONS)
    next_values = torch.randn(shape, generator=generator).to(device)
    actions = torch.randint(NUM_ACTIONS, (steps,), generator=generator).to(device)
    terminated = torch.tensor(True, device=device)
    beta = 0.5 if learners == 1 else torch.linspace(0.0, 1.0, learners, device=device)
    function = WAYS[way]
    return lambda: function(rewards, next_values, actions, terminated, gamma=0.99, beta=beta).to(
        device
    )


def measure_one(
    steps: int, learners: int, *, repetitions: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """The figures of one T and K. Raises `EbuError` if the ways do not agree."""
    say(f"T={steps}, K={learners}")
    calls = {way: compute_targets(way, steps, learners, seed, device) for way in WAYS}
    results = torch.stack([call().double() for call in calls.values()])
    apart = results.amax(0) - results.amin(0)
    largest = float((apart / results.abs().amax(0).clamp(min=1.0)).max())
    if not largest <= LARGEST_DIFFERENCE:
        raise EbuError(
            f"the targets of T={steps}, K={learners} differ by {largest:.1e} between the ways to "
            "compute them: the times would not compare"
        )
    milliseconds = {
        way: 1e3 * statistics.median(times(call, repetitions, device))
        for way, call in calls.items()
    }
    return {
        "steps": steps,
        "learners": learners,
        "milliseconds": milliseconds,
        "ratio": {way: milliseconds[way] / milliseconds["used"] for way in ("loop", "scan")},
        "difference": largest,
    }


def measure(settings: Settings) -> dict[str, Any]:
    """The figures of every T and K."""
    device = settings.prepare()
    return {
        "targets_by": targets_by(device),
        "targets": [
            measure_one(
                steps,
                learners,
                repetitions=settings.repetitions,
                seed=settings.seed,
                device=device,
            )
            for learners in settings.learners
            for steps in settings.steps
        ],
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
    return markdown.table((*header, "largest relative difference"), rows)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
