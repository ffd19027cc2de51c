"""Host time of updates and of vector steps, with the work of the device left out.

    python -m benchmarks.host_speed --json host.json

What a GPU would be given as a CUDA graph (`agents.graphs`) is computed once for each set of shapes
and returned again from then on; arguments are copied to their places as before a replay. Emulators
are left out too. What remains is what Python and numpy do on one core while a GPU waits.

| figure | microseconds of processor time |
| --- | --- |
| update | an update of each agent, at one update per agent step: draw, locate, upload, launch |
| draws per update | segments whose targets were computed, of `ebu` |
| vector step | acting, storing and the loop for all environments, without updates |
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor

import agents.agent
import agents.segment_target
from agents import Agent, Learner, build_agent
from agents.graphs import Captured, _Graph
from benchmarks.measurement import interleave, medians, run_benchmark
from benchmarks.runs import PlaySettings, network_arguments, random_play
from ebu.commands.presets import DEFAULT, for_agent
from ebu.interfaces import VectorStep
from ebu.replay import EpisodicReplay
from ebu.run import markdown
from ebu.run.cli import run_command
from ebu.run.settings import Positive
from ebu.sampling import Draw
from ebu.training import Trainer

AGENTS = ("dqn", "ebu")


@dataclass(frozen=True)
class Settings(PlaySettings):
    """What is measured."""

    num_envs: Positive = 64
    """Environments that play; also updates per vector step."""
    steps: Positive = 300
    """Vector steps of play in the memory."""
    threads: Positive = 1
    """Threads of torch."""
    repetitions: Positive = 20
    """Vector steps in a measurement."""
    rounds: Positive = 5
    """Measurements of each, in turn."""


class _Replayed:
    """Stands in for a graph whose result is there already."""

    def replay(self) -> None: ...


class ComputedOnce(Captured[Any]):
    """A function that is called once for each set of shapes."""

    def _capture(self, arguments: dict[str | int, Any]) -> _Graph:
        positional = [value for name, value in arguments.items() if isinstance(name, int)]
        named = {name: value for name, value in arguments.items() if isinstance(name, str)}
        result = self._function(*positional, **named)
        return _Graph(_Replayed(), arguments, result)  # type: ignore[arg-type]


@contextmanager
def without_a_device() -> Iterator[None]:
    """Within it, agents are built, and learn, as on a GPU that takes no time."""

    def once(function: Callable[..., Any], *_: Any, **__: Any) -> ComputedOnce:
        return ComputedOnce(function)

    def as_on_a_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda length, _: function(length, "cuda")

    # The device's work are stacks of frames; what is smaller is moved, and so are new frames.
    gather, copy = Tensor.index_select, Tensor.copy_

    def launch_gather(memory: Tensor, axis: int, rows: Tensor) -> Tensor:
        if memory.dim() > 2:
            return memory[0].expand(len(rows), *memory.shape[1:])
        return gather(memory, axis, rows)

    def launch_copy(place: Tensor, values: Tensor, non_blocking: bool = False) -> Tensor:
        return place if place.dim() > 3 else copy(place, values, non_blocking)

    target = agents.segment_target
    with (
        mock.patch.object(agents.agent, "capture", once),
        mock.patch.object(target, "capture", once),
        mock.patch.object(target, "TOGETHER", {"cpu"}),
        mock.patch.object(target, "pass_sizes", as_on_a_gpu(target.pass_sizes)),
        mock.patch.object(target, "sweep_shape", as_on_a_gpu(target.sweep_shape)),
        mock.patch.object(Tensor, "index_select", launch_gather),
        mock.patch.object(Tensor, "copy_", launch_copy),
    ):
        yield


class StillGames:
    """Environments that show the same step, in which no game ends, again and again."""

    def __init__(self, trainer: Trainer) -> None:
        env = self._env = trainer.env
        while True:
            env.send(np.zeros(env.num_envs, np.int64))
            self._step = step = env.recv()
            if not (step.started | step.terminated | step.truncated | step.life_lost).any():
                break

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def send(self, actions: np.ndarray) -> None: ...

    def recv(self) -> VectorStep:
        return self._step


def count_draws(agent: Agent, drawn: list[int]) -> None:
    """Append how many segments' targets the agent computes, each time it does."""
    target: Any = agent.target
    compute = target._compute

    def counted(replay: EpisodicReplay, draws: Sequence[Draw]) -> None:
        drawn.append(len(draws))
        compute(replay, draws)

    target._compute = counted


def measure(settings: Settings) -> dict[str, Any]:
    """All figures."""
    with random_play(settings) as trainer, without_a_device():
        tasks: dict[str, Callable[[int], float]] = {}
        rng = np.random.default_rng(settings.seed)
        learner = Learner(
            DEFAULT.learner, precision="float32", rng=rng, **network_arguments(trainer)
        )
        drawn: list[int] = []
        for name in AGENTS:
            agent = build_agent(for_agent(DEFAULT, name).method, learner, rng)
            if name == "ebu":
                count_draws(agent, drawn)

            def update(number: int, agent: Any = agent) -> float:
                if number == 0:
                    # Whatever shapes there are.
                    agent.learn(trainer.replay, 40 * settings.num_envs)
                started = time.thread_time()
                for _ in range(settings.repetitions):
                    agent.learn(trainer.replay, settings.num_envs)
                taken = time.thread_time() - started
                return 1e6 * taken / settings.repetitions / settings.num_envs

            tasks[f"update, {name}"] = update
        trainer.env = StillGames(trainer)
        trainer.agent = build_agent(for_agent(DEFAULT, "ebu").method, learner, rng)

        def vector_step(number: int) -> float:
            # First once around the ring, whose memory is only then there.
            for _ in range(trainer.replay.ring_length if number == 0 else 1):
                trainer._step()
            started = time.thread_time()
            for _ in range(settings.repetitions):
                trainer._step()
            return 1e6 * (time.thread_time() - started) / settings.repetitions

        tasks["vector step"] = vector_step
        rounds = interleave(tasks, settings.rounds)
        calls = settings.repetitions * settings.rounds + 40
        draws = sum(drawn) / calls / settings.num_envs
    return {"rounds": rounds, "medians": medians(rounds), "draws_per_update": draws}


def table(figures: Mapping[str, Any]) -> str:
    """The medians as a Markdown table."""
    rows = [(name, f"{value:,.1f}") for name, value in figures["medians"].items()]
    rows.append(("draws per update", f"{figures['draws_per_update']:.2f}"))
    return markdown.table(("host", "µs"), rows)


main = partial(run_benchmark, Settings, measure, table)

if __name__ == "__main__":
    run_command(main)
