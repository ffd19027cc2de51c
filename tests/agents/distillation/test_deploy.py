"""Agents deployed: their files, and what is measured of them."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.distillation.deploy.deployment import (
    deploy,
    latencies,
    read_exports,
)
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.distillation.records import GameScores
from agents.foreign.layers import Layer, Layers, PlainPolicy
from agents.trained import TrainedAgent
from ebu.interfaces import Act
from tests.agents.distillation.small_pipelines import SIDE, teacher_of
from tests.agents.distillation.test_dataset import set_of
from tests.agents.distillation.test_export import STATES, agent_of
from tests.agents.distillation.test_report import score_of

AGENTS = {"teacher": agent_of("6-8-8/48", outputs="values"), "2-3-4/5-kl": agent_of("2-3-4/5")}
CALLS, GAMES = 3, 4


class Scorer:
    """Scores by how often two states make the first action; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, path: Path, act: Act) -> GameScores:
        self.asked.append(act)
        stacks = STATES.stacks(torch.arange(40))
        actions, _ = act(stacks, epsilon=0.0, rng=np.random.default_rng(0))
        return score_of(*np.bincount(actions, minlength=GAMES).tolist())


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Scorer]:
    directory, scorer = tmp_path_factory.mktemp("deployed") / "export", Scorer()
    return directory, deploy(directory, AGENTS, STATES, scorer, games=GAMES, calls=CALLS), scorer


def test_every_agent_gets_two_files_that_play(deployed: tuple[Path, Any, Scorer]) -> None:
    directory, records, _ = deployed
    assert read_exports(directory) == {"exports": records, "left_out": {}}
    assert list(records) == list(AGENTS)
    assert records["2-3-4/5-kl"]["onnx"] == "2-3-4_5-kl.onnx"
    for name, record in records.items():
        for part in (record, record["int8"]):
            path = directory / part["onnx"]
            assert path.stat().st_size == part["bytes"]
            assert OnnxPolicy(path).about["agent"] == name
        assert record["seed"] == AGENTS[name].config["settings"]["seed"]
        assert record["parity"]["states"] == len(STATES)
        assert record["parity"]["largest_difference"] < record["parity"]["tolerance"]
        for kind in ("torch", "onnxruntime", "int8"):
            assert 0 < record["latency"][kind]["p50_us"] <= record["latency"][kind]["p99_us"]


def test_the_int8_file_itself_is_scored_and_compared_where_it_was_not_calibrated(
    deployed: tuple[Path, Any, Scorer],
) -> None:
    directory, records, scorer = deployed
    assert [type(act.__self__) for act in scorer.asked] == [OnnxPolicy, OnnxPolicy]
    for name, record in records.items():
        int8 = record["int8"]
        policy = OnnxPolicy(directory / int8["onnx"])
        assert int8["evaluation"] == Scorer()(Path(), policy.choose)
        judge = STATES.held_out
        assert int8["calibrated_on"] == min(512, len(STATES.train))
        assert int8["states"] == len(judge)
        agreeing = [
            policy.act(stack.numpy()) == AGENTS[name].act(stack) for stack in STATES.stacks(judge)
        ]
        assert int8["agreement"] == pytest.approx(sum(agreeing) / len(judge))


def test_what_is_missing_or_altered_is_made_again(
    deployed: tuple[Path, Any, Scorer], tmp_path: Path
) -> None:
    directory, records, _ = deployed
    again = tmp_path / "export"
    shutil.copytree(directory, again)

    def repeat(agents: Mapping[str, TrainedAgent]) -> tuple[int, Any]:
        """How often an int8 file played, and the records without latencies."""
        scorer = Scorer()
        found = deploy(again, agents, STATES, scorer, games=GAMES, calls=CALLS)
        return len(scorer.asked), {k: {**r, "latency": {}} for k, r in found.items()}

    expected = {k: {**r, "latency": {}} for k, r in records.items()}
    assert repeat(AGENTS) == (0, expected)
    missing, altered = "teacher.onnx", "2-3-4_5-kl.int8.onnx"
    (again / missing).unlink()
    (again / altered).write_bytes((directory / altered).read_bytes() + b"\0")
    assert repeat(AGENTS) == (2, expected)
    for name in (missing, altered):
        assert (again / name).read_bytes() == (directory / name).read_bytes()
    # Other weights under the same name and seed.
    other = agent_of("2-3-4/5", seed=1)
    other.config["settings"]["seed"] = AGENTS["2-3-4/5-kl"].config["settings"]["seed"]
    played, found = repeat({**AGENTS, "2-3-4/5-kl": other})
    assert played == 1
    assert found["teacher"] == expected["teacher"]
    assert found["2-3-4/5-kl"]["sha256"] != expected["2-3-4/5-kl"]["sha256"]


@pytest.mark.parametrize("kind", ["numbers", "tanh"])
def test_vectors_and_other_layers_are_exported(kind: str, tmp_path: Path) -> None:
    agent = teacher_of(network="6-6-6/8", frame_shape=(5,), stack=1)
    agent.config["environment"]["frame_dtype"] = "float32"
    if kind == "tanh":
        dense = [nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, agent.num_actions)]
        layers = tuple(Layer(each.weight.detach(), each.bias.detach()) for each in dense)
        agent.network = PlainPolicy(Layers((), layers, "Tanh"))
    states = set_of(20, 20, 20, stack=1, shape=(5,))
    frames = torch.randn(states.frames.shape, generator=torch.Generator().manual_seed(0))
    states = replace(states, frames=frames)
    deploy(tmp_path, {"it": agent}, states, lambda *_: score_of(1, 2), games=2, calls=2)
    policy, int8 = (OnnxPolicy(tmp_path / name) for name in ("it.onnx", "it.int8.onnx"))
    stacks = states.stacks(torch.arange(30))
    expected = agent.outputs_of(stacks)
    np.testing.assert_allclose(policy.outputs_of(stacks.numpy()), expected, 1e-5, 1e-5)
    # Rounded, and still the same policy in most states.
    agreed = int8.outputs_of(stacks.numpy()).argmax(1) == expected.argmax(1).numpy()
    assert agreed.mean() > 0.8


@pytest.mark.parametrize(
    ("network", "shape", "dtype"),
    [
        ("impala", (SIDE, SIDE), "uint8"),
        ("impala@svd=7", (37, SIDE), "uint8"),
        ("grid", (2, 5, 6), "uint8"),
        ("grid", (2, 5, 6), "float32"),
        ("dueling", (3, 7, 7), "uint8"),
    ],
)
def test_residual_blocks_and_grids_are_exported(
    network: str, shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    agent = teacher_of(network=network, frame_shape=shape, stack=2)
    agent.config["environment"]["frame_dtype"] = dtype
    states, draw = set_of(20, 20, 20, stack=2, shape=shape), torch.Generator().manual_seed(0)
    # Grids hold small codes, most of them 0.
    frames = torch.randint(256 if len(shape) == 2 else 4, states.frames.shape, generator=draw)
    states = replace(states, frames=frames.to(getattr(torch, dtype)))
    records = deploy(tmp_path, {"it": agent}, states, lambda *_: score_of(1, 2), games=2, calls=2)
    assert records["it"]["parity"]["largest_difference"] < 1e-4
    policy, int8 = (OnnxPolicy(tmp_path / name) for name in ("it.onnx", "it.int8.onnx"))
    assert (policy.stack, policy.frame_shape) == (2, shape)
    stacks = states.stacks(torch.arange(30))
    expected = agent.outputs_of(stacks).numpy()
    np.testing.assert_allclose(policy.outputs_of(stacks.numpy()), expected, 1e-4, 1e-4)
    rounded = int8.outputs_of(stacks.numpy())
    assert rounded.shape == expected.shape
    assert np.abs(rounded - expected).mean() < 0.05 * np.ptp(expected)


def test_what_is_no_single_network_is_left_out_and_noted(tmp_path: Path) -> None:
    ensemble = agent_of("2-3-4/5")
    ensemble.network = nn.ModuleList([ensemble.network])
    scorer = Scorer()
    assert deploy(tmp_path, {"teacher": ensemble}, STATES, scorer, games=GAMES) == {}
    assert scorer.asked == []
    why = "only single networks of convolutions and dense layers are exported"
    assert read_exports(tmp_path)["left_out"] == {"teacher": why}
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


# --- latency --------------------------------------------------------------------------------


class Clock:
    """Goes on by what a call is said to take, in microseconds."""

    def __init__(self, taken: dict[str, Iterator[int]]) -> None:
        self.now, self.taken, self.order = 0, taken, list[str]()

    def __call__(self) -> int:
        return 1_000 * self.now

    def call(self, name: str) -> None:
        assert torch.get_num_threads() == 1
        self.order.append(name)
        self.now += next(self.taken[name])


def test_percentiles_by_hand_in_blocks_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.distillation.deploy.deployment.WARMUP_CALLS", 2)
    monkeypatch.setattr("agents.distillation.deploy.deployment.BLOCK_CALLS", 60)
    # The warm-up of each block is slow, and not counted.
    slow = [10**6, 10**6]
    taken = {
        "a": iter([*slow, *range(1, 61), *slow, *range(61, 102)]),
        "b": iter([*slow, *[7] * 60, *slow, *[7] * 41]),
    }
    clock = Clock(taken)
    threads = torch.get_num_threads()
    found = latencies(
        {name: lambda name=name: clock.call(name) for name in taken},  # type: ignore[misc]
        calls=101,
        clock=clock,
    )
    assert found == {"a": {"p50_us": 51, "p99_us": 100}, "b": {"p50_us": 7, "p99_us": 7}}
    assert clock.order == ["a"] * 62 + ["b"] * 62 + ["a"] * 43 + ["b"] * 43
    assert torch.get_num_threads() == threads
