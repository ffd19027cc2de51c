"""Parity compares weights: one update that differs is found."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agents import Agent
from benchmarks import parity
from benchmarks.runs import PlaySettings, random_play
from ebu.training import Trainer


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    settings = PlaySettings(steps=100, num_envs=2, game="breakout", device="cpu", threads=1)
    with random_play(settings) as played:
        yield played


def agent_of(*weights: float) -> Any:
    """What of an agent is compared: a network of two tensors."""
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(weights[0])
        layer.bias.fill_(weights[1])
    return SimpleNamespace(learner=SimpleNamespace(online=layer))


def test_the_difference_is_relative_to_all_weights() -> None:
    agent = agent_of(3.0, -4.0)
    assert parity.difference(agent, agent_of(3.0, -4.5)).item() == pytest.approx(0.1)
    # One unit in the last place is not lost among the squares.
    last_bit = float(torch.nextafter(torch.tensor(3.0), torch.tensor(4.0)))
    assert 0 < parity.difference(agent, agent_of(last_bit, -4.0)).item() < 1e-7
    assert parity.difference(agent, agent_of(3.0, -4.0)).item() == 0
    assert parity.milestones(101) == [1, 10, 100, 101]


@pytest.mark.parametrize("name", ["ebu", "dqn"])
def test_another_update_is_found(name: str, trainer: Trainer) -> None:
    """One agent rounds otherwise in one update: in step that ends there, apart it stays."""
    agents = parity.agents_of(name, "float32", 0, trainer)
    assert parity.in_step(agents, trainer.replay, 2) == 0
    round_otherwise_once(agents["eager"])
    largest = parity.in_step(agents, trainer.replay, 2)
    assert 0 < largest < parity.TOLERANCE["float32"]
    assert parity.in_step(agents, trainer.replay, 2) == 0

    agents = parity.agents_of(name, "float32", 0, trainer)
    round_otherwise_once(agents["graphed"])
    differences = parity.apart(agents, trainer.replay, 2)
    assert list(differences["graphed"]) == ["1", "2"]
    assert min(differences["graphed"].values()) > 0
    assert differences["again"] == {"1": 0, "2": 0}


def round_otherwise_once(agent: Agent) -> None:
    """Change the gradients of the next update."""
    optimizer = agent.learner.optimizer
    step = optimizer.step

    def changed() -> None:
        optimizer.step = step  # type: ignore[method-assign]
        for weight in optimizer.state:
            assert weight.grad is not None
            weight.grad *= 1.001
        step()

    optimizer.step = changed  # type: ignore[method-assign]
