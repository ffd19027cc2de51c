"""What each piece of learning and acting takes that a GPU is given as one CUDA graph.

    python -m benchmarks.update_speed --json updates.json

The pieces of one learner and of several stacked as one (`agents.stacked`), on a memory of frames
that were played, each with two limits: its arithmetic at the rate of a large matrix product, and
its bytes over the bus at the rate of a large copy, both measured before (see `limits`). The last
rows are whole gradient steps of an agent, with their draws, target passes and targets.

The results file holds `matrix` and `copy`, the rates, and `pieces`, a list with, for each
`precision`, number of `learners` and `piece`:

| key | meaning |
| --- | --- |
| microseconds | of a call, from one to the next, many in a row: what a run pays for it |
| device_microseconds | of its work on the GPU, by events; it is launched before, where |
| | nothing waits for results |
| launches, kernels | calls to the GPU's driver; kernels and copies that it does for them |
| arithmetic_microseconds, bus_microseconds | the limits |
| over_one | microseconds over those of one learner |

What only a GPU has is null on the CPU.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from agents import Learner, build_agent
from agents.agent import MEASURED_UPDATES
from agents.graphs import capture
from agents.segment_target import PASS_STATES
from agents.stacked import StackedLearner
from benchmarks.limits import Flops, copy_rate, count_flops, matrix_rate
from benchmarks.measurement import run_benchmark, say, times
from benchmarks.runs import BATCH_SIZE, PlaySettings, network_arguments, random_play
from ebu.commands.presets import DEFAULT, for_agent
from ebu.errors import UsageError
from ebu.replay import EpisodicReplay
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.machine import arithmetic
from ebu.run.settings import Positive
from ebu.staging import Staging
from ebu.targets import backward_targets

SMALLEST_PASS = 32
BATCHES = 3
# Clock cycles, some 25 ms, for which the GPU is kept busy while a row is queued.
BUSY_CYCLES = 50_000_000
# Titles and formats of the table's columns.
COLUMNS = {
    "microseconds": ("µs", ",.1f"),
    "device_microseconds": ("on the GPU, µs", ",.1f"),
    "launches": ("launches", "d"),
    "kernels": ("kernels", "d"),
    "arithmetic_microseconds": ("arithmetic, µs", ",.1f"),
    "bus_microseconds": ("bus, µs", ",.2f"),
    "over_one": ("over one learner", ",.2f"),
}
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


@dataclass(frozen=True)
class Settings(PlaySettings):
    """What is measured."""

    precisions: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Arithmetic of the networks."""
    learners: tuple[Positive, ...] = (1, 11)
    """K: numbers of learners."""
    num_envs: Positive = 64
    """Environments that are acted for."""
    repetitions: Positive = 100
    """Calls in a row."""

    def checked(self) -> Self:
        """With the game's id."""
        if 1 not in self.learners[:1]:
            raise UsageError("--learners must begin with 1, which the others are compared with")
        return super().checked()


class Piece(NamedTuple):
    """Something that is launched as one.

    | field | meaning |
    | --- | --- |
    | flops | floating-point operations of a call |
    | bus_bytes | bytes that a call brings to the device |
    """

    name: str
    call: Callable[[], object]
    flops: float
    bus_bytes: int


def pieces_of(
    learner: Learner, replay: EpisodicReplay, flops: Flops, rng: np.random.Generator
) -> Iterator[Piece]:
    """The pieces of a learner, or of K in one."""
    staging = Staging(replay.device)
    learners = learner.num_learners if isinstance(learner, StackedLearner) else 1
    rows = (learners,) if isinstance(learner, StackedLearner) else ()
    betas = torch.full(rows, 0.5, device=replay.device) if rows else 0.5

    def update(replay: EpisodicReplay, located: Tensor, targets: Tensor) -> Tensor:
        batch = replay.batch(located)
        return learner.update(batch.states, batch.actions, targets)[0]

    def target_pass(replay: EpisodicReplay, located: Tensor) -> Tensor:
        return learner.target_values(replay.batch(located).next_states)

    def sweep(
        replay: EpisodicReplay, located: Tensor, next_values: Tensor, how_it_ends: Tensor
    ) -> Tensor:
        batch = replay.batch(located)
        length, terminated = how_it_ends
        return backward_targets(
            batch.rewards,
            next_values,
            batch.actions,
            terminated != 0,
            gamma=DEFAULT.method.gamma,
            beta=betas,
            lengths=length,
        )

    located = replay.transitions.locate(*replay.transitions.draw(rng, BATCH_SIZE))
    targets = torch.zeros((*rows, BATCH_SIZE), device=replay.device)
    step = capture(update, replay.device, changes=learner.tensors)
    yield Piece(
        f"gradient step on {BATCH_SIZE}",
        lambda: step(replay, staging.upload(located), targets),
        learners * flops.update,
        located.nbytes,
    )

    forward = capture(target_pass, replay.device)
    size = SMALLEST_PASS
    while size <= PASS_STATES[replay.device.type]:
        places = replay.transitions.locate(*replay.transitions.draw(rng, size))
        yield Piece(
            f"target pass of {size}",
            partial(lambda at: forward(replay, staging.upload(at)), places),
            learners * size * flops.state,
            places.nbytes,
        )
        size *= 2
    uploaded = staging.upload(places)
    next_values = forward(replay, uploaded).clone()
    how_it_ends = np.array([len(places), 1])
    backward = capture(sweep, replay.device)
    yield Piece(
        f"sweep over {len(places)}",
        lambda: backward(replay, uploaded, next_values, staging.upload(how_it_ends)),
        0.0,
        places.nbytes + how_it_ends.nbytes,
    )

    acting = capture(learner.values, replay.device)

    def actions() -> Tensor:
        return acting(replay.newest_states()).argmax(-1)

    flops_of_all = learners * replay.num_streams * flops.state
    places_of_all = replay.num_streams * replay.stack * np.dtype(np.int64).itemsize
    name = f"acting for {replay.num_streams}"
    yield Piece(name, actions, flops_of_all, places_of_all)
    yield Piece(f"{name}, actions waited for", lambda: actions().cpu(), flops_of_all, places_of_all)


def whole_updates(learner: Learner, replay: EpisodicReplay, flops: Flops) -> Iterator[Piece]:
    """Gradient steps of each agent with everything that they need, one and a graph full of them."""
    for name, updates in product(("ebu", "dqn"), (1, MEASURED_UPDATES)):
        method = for_agent(DEFAULT, name).method
        agent = build_agent(method, learner, np.random.default_rng(0))
        yield Piece(
            f"all of {updates} gradient step{'s' * (updates > 1)}, {name}",
            partial(agent.learn, replay, updates),
            updates * (flops.update + BATCH_SIZE * flops.state),
            0,
        )


def time_piece(call: Callable[[], object], count: int, device: torch.device) -> dict[str, Any]:
    """Times and launches of a call, `count` in a row."""

    def row() -> None:
        for _ in range(count):
            call()

    seconds = statistics.median(times(row, BATCHES, device)) / count
    figures: dict[str, Any] = {"microseconds": 1e6 * seconds}
    if device.type != "cuda":
        return {**figures, "device_microseconds": None, "launches": None, "kernels": None}
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Launching is not timed: all is queued before the GPU comes to it.
    torch.cuda._sleep(BUSY_CYCLES)
    started.record()
    row()
    ended.record()
    torch.cuda.synchronize()
    figures["device_microseconds"] = 1e3 * started.elapsed_time(ended) / count
    return figures | count_launches(call)


def count_launches(call: Callable[[], object]) -> dict[str, int]:
    """What one call launches, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.events()
    return {
        "launches": sum(event.name.startswith(LAUNCHES) for event in events),
        "kernels": sum(
            event.device_type.name == "CUDA" and not event.is_user_annotation for event in events
        ),
    }


def figures_of(
    replay: EpisodicReplay,
    arguments: Mapping[str, Any],
    *,
    precision: str,
    learners: int,
    repetitions: int,
    flops: Flops,
    matrix: float,
    copied: float,
) -> Iterator[dict[str, Any]]:
    """The figures of each piece of K learners.

    | argument | meaning |
    | --- | --- |
    | arguments | of a learner that fits the replay memory |
    | matrix, copied | rates of the machine, FLOP/s and bytes/s |
    """
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {**arguments, "precision": precision, "rng": rng}
    if learners == 1:
        learner = Learner(DEFAULT.learner, **options)
    else:
        learner = StackedLearner(DEFAULT.learner, num_learners=learners, **options)
    pieces = pieces_of(learner, replay, flops, rng)
    if learners == 1:
        pieces = chain(pieces, whole_updates(learner, replay, flops))
    with arithmetic(replay.device, precision):
        for piece in pieces:
            say(f"{precision}, K={learners}: {piece.name}")
            yield {
                "precision": precision,
                "learners": learners,
                "piece": piece.name,
                **time_piece(piece.call, repetitions, replay.device),
                "arithmetic_microseconds": 1e6 * piece.flops / matrix,
                "bus_microseconds": 1e6 * piece.bus_bytes / copied,
            }


def measure(settings: Settings) -> dict[str, Any]:
    """All figures."""
    flops = count_flops(settings.game)
    matrix: dict[str, float] = {}
    figures: list[dict[str, Any]] = []
    one: dict[str, float] = {}
    with random_play(settings) as trainer:
        device = trainer.replay.device
        copied = copy_rate(device)
        for precision, learners in product(settings.precisions, settings.learners):
            if precision not in matrix:
                matrix[precision] = matrix_rate(device, precision)["max"]
                one = {}
            for each in figures_of(
                trainer.replay,
                network_arguments(trainer),
                precision=precision,
                learners=learners,
                repetitions=settings.repetitions,
                flops=flops,
                matrix=matrix[precision],
                copied=copied,
            ):
                first = one.setdefault(each["piece"], each["microseconds"])
                figures.append({**each, "over_one": each["microseconds"] / first})
    return {"matrix": matrix, "copy": copied, "pieces": figures}


def table(figures: Mapping[str, Any]) -> str:
    """The pieces as a Markdown table."""
    rows = [
        (
            *(each["precision"], str(each["learners"]), each["piece"]),
            *(
                "" if each[key] is None else format(each[key], form)
                for key, (_, form) in COLUMNS.items()
            ),
        )
        for each in figures["pieces"]
    ]
    return markdown.table(
        ("precision", "K", "piece", *(title for title, _ in COLUMNS.values())), rows
    )


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
