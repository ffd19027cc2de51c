"""What a CUDA graph of an update holds: nothing of the host, and the same steps as without one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import agents.adaptive
import agents.agent
import agents.finiteness
import agents.segment_target
import agents.stacked
from agents import AGENTS, Agent, LearnerConfig
from agents.annealing import LEVELS
from agents.graphs import Captured
from benchmarks.gpu_checks import train_twice
from benchmarks.noise import agent_for, noise_memory
from benchmarks.parity import TOLERANCE, in_step
from benchmarks.runs import in_process
from ebu.replay import EpisodicReplay
from ebu.run.machine import prepare_torch
from tests.made_up import CPU, same
from tests.made_up_runs import SMALL

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Every agent, and for two of them every optimizer and precision, which all agents share.
RECORDED = [
    *((name, "adam", "float32") for name in AGENTS),
    *(("dqn", *kind) for kind in (("adam", "bfloat16"), ("rmsprop", "float32"))),
    *(("ebu", *kind) for kind in (("adam", "bfloat16"), ("rmsprop", "bfloat16"))),
    *((name, "adam", "float32") for name in ("double ebu", "double nstep", "noisy ebu")),
    *((name, "adam", "float32") for name in ("quantile ebu", "shifted nstep", "impala dqn")),
]
QUICK = [("dqn", "adam", "float32"), ("ebu", "adam", "float32"), ("ebu", "adam", "bfloat16")]
FLAGS: dict[str, dict[str, Any]] = {
    "double ebu": {"double": True, "prioritized": True, "mix_segments": 4},
    "double nstep": {"double": True},
    "noisy ebu": {"noisy": True},
    "quantile ebu": {"quantiles": 5, "beta_start": 1.0, "anneal_updates": 8, "reset_updates": 8},
    "shifted nstep": {
        "shift_pixels": 4,
        "intensity": 0.05,
        "target_average": 0.05,
        "gamma_start": 0.97,
        "anneal_updates": 20,
    },
    "impala dqn": {"network": "impala", "average_updates": 20},
}
"""Flags that add to what is captured, with the agent as the last word."""


def agent_of(
    name: str, replay: EpisodicReplay, *, precision: str = "float32", **config: Any
) -> Agent:
    flags = {**SMALL.get(name, {}), **FLAGS.get(name, {}), **config}
    of_learner = {key: flags.pop(key) for key in vars(LearnerConfig()) if key in flags}
    settings = replace(AGENTS[name.split()[-1]], **flags)
    learner = LearnerConfig(target_sync_updates=10, **of_learner)
    return agent_for(replay, settings, learner, precision=precision)


class Recorded(Captured[Any]):
    """Captures as a GPU does, without one: the operations are recorded once for each set of
    shapes, and from then on repeated on new inputs, while the function itself is not called again.
    Whatever asks a tensor for its value on the host fails while it is recorded.
    """

    def __init__(self, function: Callable[..., Any], *, changes: Any = list) -> None:
        super().__init__(function, changes=changes)
        self.recordings: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *positional: Any, **named: Any) -> Any:
        values = [*positional, *named.values()]
        tensors = [value for value in values if isinstance(value, Tensor)]
        key = tuple(
            tuple(value.shape) if isinstance(value, Tensor) else id(value) for value in values
        )
        if key not in self.recordings:
            before = [tensor.detach().clone() for tensor in self._changes()]

            def of_tensors(*inputs: Tensor) -> Any:
                given = iter(inputs)
                arguments = [
                    next(given) if isinstance(value, Tensor) else value for value in values
                ]
                count = len(positional)
                return self._function(
                    *arguments[:count], **dict(zip(named, arguments[count:], strict=True))
                )

            self.recordings[key] = make_fx(of_tensors)(*tensors)
            with torch.no_grad():
                for tensor, value in zip(self._changes(), before, strict=True):
                    tensor.copy_(value)
        with torch.no_grad():  # Gradients are among what is recorded.
            return self.recordings[key](*tensors)


def record(
    function: Callable[..., Any], device: torch.device, *, changes: Any = list, enabled: bool = True
) -> Callable[..., Any]:
    """As `capture`, on the CPU."""
    assert enabled
    # The sweep looks at lengths that lie on the host, as those on a GPU do not.
    return function if function.__name__ == "_sweep_at" else Recorded(function, changes=changes)


@pytest.mark.parametrize(
    ("name", "optimizer", "precision"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow, id="-".join(case))
        for case in RECORDED
    ],
)
def test_recorded_updates_are_those_that_are_called(
    monkeypatch: pytest.MonkeyPatch, name: str, optimizer: str, precision: str
) -> None:
    # Several networks compute as on a GPU. Groups are small: recording takes its time.
    monkeypatch.setattr(agents.stacked, "IN_TURN", set())
    monkeypatch.setattr(agents.agent, "MEASURED_UPDATES", 2)
    # Losses are noted, as on a GPU, not read.
    monkeypatch.setattr(agents.finiteness, "AT_ONCE", set())
    replay = noise_memory(CPU)
    options: dict[str, Any] = {"optimizer": optimizer, "precision": precision}
    called = agent_of(name, replay, **options)
    for module in (agents.agent, agents.adaptive, agents.segment_target):
        monkeypatch.setattr(module, "capture", record)
    recorded = agent_of(name, replay, **options)
    for _ in range(3):
        called.learn(replay, 11)
        recorded.learn(replay, 11)
        assert same(recorded.state_dict(), called.state_dict())
        states = replay.newest_states()
        one, other = (
            each.act(states, epsilon=0.0, rng=np.random.default_rng(0))[0]
            for each in (called, recorded)
        )
        assert np.array_equal(one, other)
    # Two updates, one with averages for the logs, one without, at each level of what is annealed.
    most = 3 * (LEVELS + 1 if recorded.config.annealed else 1)
    assert len(recorded._gradient_steps.recordings) <= most  # type: ignore[attr-defined]
    assert recorded.metrics() == called.metrics()


@GPU
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_on_a_gpu_train_as_separate_launches_do(
    name: str, optimizer: str, precision: str
) -> None:
    device = torch.device("cuda")
    prepare_torch(device, threads=1)
    replay = noise_memory(device)
    options: dict[str, Any] = {"optimizer": optimizer, "precision": precision}
    both = {
        "graphed": agent_of(name, replay, **options),
        "eager": agent_of(name, replay, cuda_graphs=False, **options),
    }
    assert in_step(both, replay, 100) <= TOLERANCE[precision]
    assert all(agent.learner.updates == 100 for agent in both.values())
    states = replay.newest_states()
    both["eager"].load_state_dict(both["graphed"].state_dict())
    for play in ("act", "play"):
        one, other = (
            getattr(agent, play)(states, epsilon=0.0, rng=np.random.default_rng(0))[0]
            for agent in both.values()
        )
        assert np.array_equal(one, other)


@GPU
def test_deterministic_runs_on_a_gpu_give_the_same_bits() -> None:
    # In a process of its own: cuBLAS looks at its settings when it first computes.
    assert in_process(train_twice, "cuda", 200) == 0
