"""Noisy layers: what they compute, their noise and where it is new, and what plays without it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from agents import AGENTS, Agent, LearnerConfig, build_learner, load_agent
from agents.agent import policy_weights
from agents.networks import build_network
from agents.noisy import Noise, WeightNoise, build_noisy_network
from benchmarks.noise import agent_for, noise_memory
from ebu.errors import UsageError
from ebu.run.checkpoint import save_checkpoint
from ebu.run.directory import write_config
from tests.made_up import CPU, through_disk

ERROR_RATE = 1e-6
MEMORY = noise_memory(CPU, capacity=2_000)
STATES = MEMORY.newest_states()
SHAPE: dict[str, Any] = {"stack": 4, "frame_shape": (36, 36), "num_actions": 4}


def agent_of(name: str = "ebu", precision: str = "float32", **flags: Any) -> Agent:
    row = AGENTS[name]
    method = {key: flags.pop(key) for key in list(flags) if hasattr(row, key)}
    learner = LearnerConfig(**{"network": "net3", "noisy": True, **flags})
    return agent_for(MEMORY, replace(row, **method), learner, precision=precision)


def noisy_layers(network: nn.Module) -> list[WeightNoise]:
    return [layer for layer in network.modules() if isinstance(layer, WeightNoise)]


def test_a_noisy_layer_by_hand() -> None:
    layer = WeightNoise(nn.Linear(2, 3))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        layer.bias.copy_(torch.tensor([7.0, 8.0, 9.0]))
    noise = Noise([layer], (0,))
    noise.put(torch.tensor([2.0, -1.0, 1.0, 0.0, -2.0]))
    # e_in * x = (6, -4); S of it = (6 - 8, 18 - 16, 30 - 24); with s (5, 10, 15); by e_out.
    outputs = layer(torch.tensor([[3.0, 4.0]]))
    assert outputs.tolist() == [[5.0, 0.0, -30.0]]
    outputs.sum().backward()
    # e_out e_in x
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[6.0, -4.0], [0.0, 0.0], [-12.0, 8.0]]
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [1.0, 0.0, -2.0]


def test_a_noisy_network_is_one_of_noisy_weights() -> None:
    arguments = {**SHAPE, "quantiles": 3}
    noisy, plain = (
        build("dueling", generator=torch.Generator().manual_seed(0), **arguments)
        for build in (build_noisy_network, build_network)
    )
    noise = Noise([noisy], (0,))
    noise.put(torch.from_numpy(noise.draw(1)["noise"][0]))
    of_layer = {
        name.removesuffix(".noise"): each
        for name, each in noisy.named_modules()
        if isinstance(each, WeightNoise)
    }
    assert len(of_layer) == 4  # hidden and output layers of the value and of the advantages
    states = torch.randint(256, (5, 4, 36, 36), dtype=torch.uint8)
    # Without noise the same bits, with it those weights.
    assert torch.equal(noisy.eval()(states), plain(states))
    with torch.no_grad():
        for name, each in of_layer.items():
            layer = plain.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            layer.weight.add_(each.weight * torch.outer(each.of_outputs, each.of_inputs))
            layer.bias.add_(each.bias * each.of_outputs)
    torch.testing.assert_close(noisy.train()(states), plain(states), rtol=1e-4, atol=1e-5)


def test_scales_begin_at_half_over_the_root_of_the_inputs() -> None:
    learner = agent_of(output_scale=0.01).learner
    for layer in noisy_layers(learner.online):
        expected = torch.tensor(0.5 / layer.in_features**0.5)
        assert torch.equal(layer.weight, expected.expand_as(layer.weight))
        assert torch.equal(layer.bias, expected.expand_as(layer.bias))


def test_noise_is_signed_roots_of_normal_numbers_and_independent() -> None:
    noise = Noise([WeightNoise(nn.Linear(40, 10)) for _ in range(2)], (0,))
    drawn = noise.draw(200)["noise"]
    assert drawn.shape == (200, 100)
    assert drawn.dtype == np.float32
    normal = np.sign(drawn) * drawn**2
    assert scipy.stats.kstest(normal.ravel(), "norm").pvalue > ERROR_RATE
    # The largest of 4,950 correlations of 200 numbers each.
    correlations = np.abs(np.corrcoef(normal.T) - np.eye(100))
    assert correlations.max() < 0.45


def test_every_update_and_every_step_of_acting_has_noise_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, seen = agent_of("dqn"), []
    learner = agent.learner

    def note(network: nn.Module) -> None:
        seen.append(torch.cat([layer.of_inputs for layer in noisy_layers(network)]).clone())

    update, target_values = learner.update, learner.target_values

    def noted_update(*arguments: Any) -> Any:
        note(learner.online)
        return update(*arguments)

    def noted_values(states: Tensor) -> Tensor:
        note(learner.target)
        return target_values(states)

    monkeypatch.setattr(learner, "update", noted_update)
    monkeypatch.setattr(learner, "target_values", noted_values)
    agent.learn(MEMORY, 3)
    rng = np.random.default_rng(0)
    for _ in range(2):
        agent.act(STATES, epsilon=0.0, rng=rng)
        note(learner.online)
    assert len(seen) == len({tuple(each.tolist()) for each in seen}) == 8
    first, again = (agent.acting_values(STATES) for _ in range(2))
    assert not torch.equal(first, again)


def test_all_passes_over_a_segment_have_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.segment_target.PASS_STATES", {"cpu": 8})
    agent = agent_of("ebu", double=True)
    learner, seen = agent.learner, list[list[tuple[float, ...]]]()
    compute, target_values = agent.target._compute, learner.target_values  # type: ignore[attr-defined]

    def noted_segment(*arguments: Any) -> None:
        seen.append([])
        compute(*arguments)

    def noted_values(states: Tensor) -> Tensor:
        layers = [*noisy_layers(learner.online), *noisy_layers(learner.target)]
        seen[-1].append(tuple(torch.cat([layer.of_inputs for layer in layers]).tolist()))
        return target_values(states)

    monkeypatch.setattr(agent.target, "_compute", noted_segment)
    monkeypatch.setattr(learner, "target_values", noted_values)
    agent.learn(MEMORY, 5)
    assert all(len(set(passes)) == 1 for passes in seen)
    assert len({passes[0] for passes in seen}) == len(seen)
    assert max(map(len, seen)) > 2


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({}, "float32"),
        ({}, "bfloat16"),
        ({"network": "dueling", "quantiles": 5, "average_updates": 5}, "bfloat16"),
        ({"network": "impala", "target_average": 0.1}, "float32"),
        ({"network": "net3@svd=8", "reset_updates": 3, "optimizer": "rmsprop"}, "bfloat16"),
    ],
)
def test_what_plays_and_is_loaded_is_a_plain_network(
    tmp_path: Path, flags: dict[str, Any], precision: Any
) -> None:
    agent = agent_of("ebu", precision, **flags)
    scales = [layer.weight.clone() for layer in noisy_layers(agent.learner.online)]
    agent.learn(MEMORY, 4)
    for layer, before in zip(noisy_layers(agent.learner.online), scales, strict=True):
        assert layer.weight.isfinite().all()
        assert not torch.equal(layer.weight, before)
    values = agent.evaluation_values(STATES)
    agent.act(STATES, epsilon=0.0, rng=np.random.default_rng(0))
    assert torch.equal(agent.evaluation_values(STATES), values)
    state = agent.state_dict()
    plain = build_network(
        agent.learner.config.network,
        **SHAPE,
        generator=torch.Generator(),
        quantiles=agent.learner.config.quantiles,
    )
    assert policy_weights(state).keys() == plain.state_dict().keys()
    settings = {"agent": "ebu", "network": "net3", "game": "pong", "protocol": "paper", **flags}
    environment = {**SHAPE, "frame_shape": [36, 36], "frame_dtype": "uint8"}
    write_config(tmp_path, {"settings": settings, "environment": environment})
    saved = {"agent": state, "frames": 400}
    save_checkpoint(tmp_path / "checkpoints", "frames-000000000400", saved)
    assert torch.equal(load_agent(tmp_path, precision=precision).values(STATES), values)


def test_a_restored_agent_acts_on_the_same_noise(tmp_path: Path) -> None:
    one, other = agent_of(), agent_of()
    one.learn(MEMORY, 3)
    one.acting_values(STATES)
    other.load_state_dict(through_disk(one.state_dict(), tmp_path))
    for _ in range(2):
        values = [each.acting_values(STATES) for each in (one, other)]
        assert torch.equal(*values)
        for each in (one, other):
            each.learn(MEMORY, 2)


def test_scales_are_drawn_anew_by_a_reset() -> None:
    agent = agent_of(reset_updates=2)
    agent.learn(MEMORY, 2)
    for network in (agent.learner.online, agent.learner.target):
        for layer in noisy_layers(network):
            assert (layer.weight == 0.5 / layer.in_features**0.5).all()


def test_it_is_refused_for_several_learners() -> None:
    with pytest.raises(UsageError, match="--noisy is not for adaptive_ebu"):
        build_learner(AGENTS["adaptive_ebu"], LearnerConfig(noisy=True), frame_shape=(36, 36))
