"""Agents deployed: their files, and what is measured of them."""

from collections.abc import Iterator
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
from agents.distillation.records import Score
from ebu.interfaces import Act
from tests.agents.distillation.small_pipelines import teacher_of
from tests.agents.distillation.test_export import STATES, agent_of
from tests.agents.distillation.test_report import score_of

AGENTS = {"teacher": agent_of("6-8-8/48", outputs="values"), "2-3-4/5-kl": agent_of("2-3-4/5")}
CALLS, GAMES = 3, 4


class Scorer:
    """Scores by how often two states make the first action; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, path: Path, act: Act) -> Score:
        self.asked.append(act)
        stacks = STATES.stacks(torch.arange(40))
        actions, _ = act(stacks, epsilon=0.0, rng=np.random.default_rng(0))
        return score_of(*np.bincount(actions, minlength=GAMES).tolist())


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Scorer]:
    directory, scorer = tmp_path_factory.mktemp("deployed") / "export", Scorer()
    return directory, deploy(directory, AGENTS, STATES, scorer, calls=CALLS), scorer


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


def test_what_is_no_single_network_is_left_out_and_noted(tmp_path: Path) -> None:
    ensemble, flat = agent_of("2-3-4/5"), teacher_of(frame_shape=(4,))
    ensemble.network = nn.ModuleList([ensemble.network])
    scorer = Scorer()
    assert deploy(tmp_path, {"teacher": ensemble, "flat": flat}, STATES, scorer) == {}
    assert scorer.asked == []
    why = "only single networks over images, such as Atari's, are exported"
    assert read_exports(tmp_path)["left_out"] == {"teacher": why, "flat": why}
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
