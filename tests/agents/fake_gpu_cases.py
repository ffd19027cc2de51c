"""Agents on tensors that claim to lie on a GPU; test_fake_gpu.py runs these cases.

In a process of their own, into which a guard of devices is loaded that knows no device.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agents.adaptive
import agents.agent
import agents.segment_target
import ebu.host_memory
import ebu.targets
from agents import AGENTS, Agent, LearnerConfig
from agents.learner import Trained
from benchmarks.noise import agent_for, noise_memory
from ebu.replay import EpisodicReplay
from ebu.staging import Staging
from tests.agents.test_graphs import FLAGS, agent_of

ctypes.CDLL(os.environ["DEVICE_GUARD"])
GPU = torch.device("cuda", 0)


class Crossings(TorchDispatchMode):
    """Counts what crosses from the host to the GPU or back, and refuses it inside of a graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.in_graph = False
        self.downloads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
        crosses = "copy" in func.__name__ and len({each.device for each in tensors}) > 1
        assert not (crosses and self.in_graph), f"{func} inside of a graph"
        return result


def as_in_a_graph(crossings: Crossings) -> Callable[..., Any]:
    """As `capture`, which calls the function and watches what it does."""

    def capture(function: Callable[..., Any], device: torch.device, **_: Any) -> Any:
        assert device == GPU

        def call(*positional: Any, **named: Any) -> Any:
            tensors = [
                value for value in (*positional, *named.values()) if isinstance(value, Tensor)
            ]
            assert all(each.device == GPU for each in tensors)
            crossings.in_graph = True
            try:
                return function(*positional, **named)
            finally:
                crossings.in_graph = False

        return call

    return capture


def upload(self: Staging, array: np.ndarray, out: Tensor | None = None) -> Tensor:
    dtype = getattr(torch, array.dtype.name)
    if out is None:
        return torch.empty(array.shape, dtype=dtype, device=self.device)
    assert (out.shape, out.dtype) == (array.shape, dtype)
    return out


def sweep(rewards: Tensor, next_values: Tensor, *others: Any, **named: Any) -> Tensor:
    """As the kernel: takes what lies on the GPU, and gives a row of targets for each of values."""
    given = (rewards, next_values, *others, *named.values())
    assert all(each.device == GPU for each in given if isinstance(each, Tensor))
    return torch.empty(next_values.shape[:-1], dtype=torch.float32, device=GPU)


def move(module: nn.Module, where: Any = None, memory_format: Any = None) -> nn.Module:
    """As `Module.to`, which cannot exchange a fake tensor in its place."""

    def moved(tensor: Tensor) -> Tensor:
        if where is not None:
            return tensor.to(where)
        return tensor.to(memory_format=memory_format) if tensor.dim() == 4 else tensor

    for each in module.modules():
        for name, weight in list(each.named_parameters(recurse=False)):
            trained = weight.requires_grad
            setattr(each, name, nn.Parameter(moved(weight.detach()), requires_grad=trained))
        for name, buffer in list(each.named_buffers(recurse=False)):
            setattr(each, name, moved(buffer))
    return module


def duplicate(tensor: Tensor, memo: Any) -> Tensor:
    """As `deepcopy`, which asks where a tensor lies."""
    copied = torch.empty_like(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied


@pytest.fixture(scope="module")
def crossings() -> Iterator[Crossings]:
    """A GPU whose tensors hold nothing."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from fake_gpu(monkeypatch)


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crossings]:
    watch = Crossings()

    def download(tensor: Tensor) -> Any:
        assert not watch.in_graph
        watch.downloads += 1
        values = np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))
        return SimpleNamespace(numpy=lambda: values)

    def descend(trained: Trained, losses: Tensor) -> None:
        def backward(losses: Tensor, *_: Any) -> None:
            assert losses.device == GPU
            for leaf in trained.rounded:
                leaf.grad = torch.empty_like(leaf)

        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "backward", backward)
            original_descend(trained, losses)

    original_descend = Trained.descend
    for module in (agents.agent, agents.adaptive, agents.segment_target):
        monkeypatch.setattr(module, "capture", as_in_a_graph(watch))
    monkeypatch.setattr(ebu.targets, "_sweep_kernel", lambda device: sweep)
    monkeypatch.setattr(Staging, "__init__", lambda self, device: setattr(self, "device", device))
    monkeypatch.setattr(Staging, "upload", upload)
    monkeypatch.setattr(nn.Module, "to", move)
    monkeypatch.setattr(Tensor, "__deepcopy__", duplicate)
    monkeypatch.setattr(Trained, "descend", descend)
    monkeypatch.setattr(Tensor, "cpu", download)
    monkeypatch.setattr(ebu.host_memory, "available_bytes", lambda device: None)
    # Without a GPU autocast would turn itself off.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(allow_non_fake_inputs=True), watch, torch.no_grad():
        yield watch


@pytest.fixture(scope="module")
def replay(crossings: Crossings) -> EpisodicReplay:
    return noise_memory(GPU, steps=60)


@pytest.mark.parametrize(
    ("name", "precision"),
    [*product(AGENTS, ("float32", "bfloat16")), *((name, "float32") for name in FLAGS)],
)
def test_an_agent_stays_on_its_gpu(
    crossings: Crossings,
    replay: EpisodicReplay,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: str,
) -> None:
    if precision == "bfloat16":
        # Targets by the scan, as without Triton.
        monkeypatch.setattr(ebu.targets, "_sweep_kernel", lambda device: None)
    learn_and_play(agent_of(name, replay, precision=precision), replay, crossings)


@pytest.mark.parametrize(
    ("name", "method", "learner"),
    [
        ("ebu", {"shift_pixels": 2}, {"target_average": 0.1, "average_updates": 3}),
        ("nstep", {"intensity": 0.1}, {"quantiles": 5, "network": "dueling", "reset_updates": 2}),
        ("dqn", {}, {"network": "impala", "weight_decay": 0.1}),
        ("nstep", {}, {"noisy": True, "network": "dueling", "average_updates": 3}),
        ("ebu", {"beta_start": 1.0, "gamma_start": 0.9, "anneal_updates": 3}, {}),
    ],
)
def test_ingredients_stay_on_their_gpu(
    crossings: Crossings,
    replay: EpisodicReplay,
    name: str,
    method: dict[str, Any],
    learner: dict[str, Any],
) -> None:
    agent = agent_for(
        replay, replace(AGENTS[name], **method), LearnerConfig(**learner), precision="bfloat16"
    )
    learn_and_play(agent, replay, crossings)


def learn_and_play(agent: Agent, replay: EpisodicReplay, crossings: Crossings) -> None:
    """Learn one update and then several; act, also as in evaluations."""
    for updates in (1, 3):
        before = crossings.downloads
        agent.learn(replay, updates)
        # Errors of samplers that ask for them.
        waits = updates if agent.sampler.wants_errors else 0
        assert crossings.downloads - before == waits
    states = replay.newest_states()
    assert states.device == GPU
    for play in (agent.act, agent.play):
        actions, _ = play(states, epsilon=0.1, rng=np.random.default_rng(0))
        assert actions.shape == (replay.num_streams,)


def test_a_wait_or_a_copy_inside_of_a_graph_is_found(crossings: Crossings) -> None:
    def looks(values: Tensor) -> float:
        return float(values.sum())

    def copies(values: Tensor) -> Tensor:
        return values + torch.ones(3).to(GPU)

    def mixes(values: Tensor) -> Tensor:
        return values + torch.ones(3)

    values = torch.empty(3, device=GPU)
    for wrong, error in (
        (looks, DataDependentOutputException),
        (copies, AssertionError),
        (mixes, RuntimeError),
    ):
        with pytest.raises(error):
            as_in_a_graph(crossings)(wrong, GPU)(values)
