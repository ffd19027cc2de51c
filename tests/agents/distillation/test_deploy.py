"""Agents deployed: their files, and what is measured of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.distillation import deploy as deploying
from agents.distillation.deploy import deploy, read_exports
from agents.distillation.deploy.int8 import calibration_states
from agents.distillation.deploy.latency import hardware, latencies
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.distillation.records import Score
from agents.trained import TrainedAgent
from ebu.errors import EbuError
from ebu.evaluation import Act
from tests.agents.distillation.test_export import STATES, agent_of
from tests.agents.distillation.test_report import score_of

AGENTS = {"teacher": agent_of("6-8-8/48", outputs="values"), "2-3-4/5-kl": agent_of("2-3-4/5")}
CALLS, GAMES = 3, 4


class Scorer:
    """Scores by how often two states make the first action; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, act: Act) -> Score | None:
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


def test_the_int8_file_itself_is_scored_and_compared_where_it_was_not_calibrated(
    deployed: tuple[Path, Any, Scorer],
) -> None:
    directory, records, scorer = deployed
    assert [type(act.__self__) for act in scorer.asked] == [OnnxPolicy, OnnxPolicy]
    for name, record in records.items():
        int8 = record["int8"]
        policy = OnnxPolicy(directory / int8["onnx"])
        assert int8["evaluation"] == Scorer()(policy.choose)
        assert int8["calibrated_on"] + int8["states"] == len(STATES.held_out)
        _, judge = calibration_states(STATES)
        agreeing = [
            policy.act(stack.numpy()) == AGENTS[name].act(stack) for stack in STATES.stacks(judge)
        ]
        assert int8["agreement"] == pytest.approx(sum(agreeing) / len(judge))


def test_latency_of_all_three_with_how_it_was_taken(deployed: tuple[Path, Any, Scorer]) -> None:
    _, records, _ = deployed
    for record in records.values():
        taken = record["latency"]
        for kind in ("torch", "onnxruntime", "int8"):
            assert 0 < taken[kind]["p50_us"] <= taken[kind]["p99_us"]
        assert (taken["threads"], taken["batch"], taken["calls"]) == (1, 1, CALLS)
        assert taken["hardware"] == hardware()


def test_what_was_measured_is_kept(deployed: tuple[Path, Any, Scorer]) -> None:
    directory, records, _ = deployed
    assert read_exports(directory) == {"exports": records, "left_out": {}}


def test_deployed_again_no_game_is_played_twice(
    tmp_path: Path, deployed: tuple[Path, Any, Scorer]
) -> None:
    directory, records, _ = deployed
    shutil.copytree(directory, tmp_path / "export")

    def score(_: Act) -> Score | None:
        raise AssertionError("played again")

    one = {"2-3-4/5-kl": AGENTS["2-3-4/5-kl"]}
    again = deploy(tmp_path / "export", one, STATES, score, games=GAMES, calls=CALLS)
    assert again is not None
    before, after = (
        {key: value for key, value in found["2-3-4/5-kl"].items() if key != "latency"}
        for found in (records, again)
    )
    assert before == after


def test_deployed_with_more_games_they_are_played(
    tmp_path: Path, deployed: tuple[Path, Any, Scorer]
) -> None:
    shutil.copytree(deployed[0], tmp_path / "export")
    more = score_of(1, 2, 3, 4, 5)
    again = deploy(tmp_path / "export", AGENTS, STATES, lambda act: more, games=5, calls=CALLS)
    assert again is not None
    assert [record["int8"]["evaluation"] for record in again.values()] == [more] * len(AGENTS)
    with_kept = deploy(tmp_path / "export", AGENTS, STATES, Scorer(), games=5, calls=CALLS)
    assert with_kept is not None
    assert [record["int8"]["evaluation"] for record in with_kept.values()] == [more] * len(AGENTS)


def test_told_to_stop_nothing_is_said_to_be_measured(tmp_path: Path) -> None:
    agents = {"net": agent_of("2-3-4/5")}
    assert deploy(tmp_path, agents, STATES, lambda act: None, games=GAMES, calls=CALLS) is None
    assert read_exports(tmp_path) == {"exports": {}, "left_out": {}}
    assert not (tmp_path / "scores").exists()


def test_what_is_no_single_network_is_left_out_and_noted(tmp_path: Path) -> None:
    ensemble = agent_of("2-3-4/5")
    ensemble.network = nn.ModuleList([ensemble.network])  # type: ignore[assignment]
    scorer = Scorer()
    assert deploy(tmp_path, {"teacher": ensemble}, STATES, scorer, games=GAMES) == {}
    assert scorer.asked == []
    left_out = read_exports(tmp_path)["left_out"]
    assert left_out == {
        "teacher": "only single networks over images, such as Atari's, are exported"
    }
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_an_agent_on_another_device_is_a_mistake(tmp_path: Path) -> None:
    agent: TrainedAgent = agent_of("2-3-4/5")
    agent.device = torch.device("cuda")
    with pytest.raises(ValueError, match="timed on the CPU"):
        deploy(tmp_path, {"net": agent}, STATES, Scorer(), games=GAMES)


def test_damaged_records_are_one_line(tmp_path: Path) -> None:
    for damaged in ("{", json.dumps({"exports": {}}), "[]"):
        (tmp_path / deploying.EXPORTS).write_text(damaged)
        with pytest.raises(EbuError, match=r"export\.json") as failure:
            read_exports(tmp_path)
        assert "\n" not in str(failure.value)


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


def test_percentiles_by_hand_in_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.distillation.deploy.latency.WARMUP_CALLS", 2)
    # The warm-up is slow, and not counted.
    taken = {"a": iter([10**6, 10**6, *range(1, 102)]), "b": iter([10**6] * 2 + [7] * 101)}
    clock = Clock(taken)
    threads = torch.get_num_threads()
    found = latencies(
        {name: lambda name=name: clock.call(name) for name in taken},  # type: ignore[misc]
        calls=101,
        clock=clock,
    )
    assert found == {"a": {"p50_us": 51, "p99_us": 100}, "b": {"p50_us": 7, "p99_us": 7}}
    assert clock.order == ["a", "b"] * 103
    assert torch.get_num_threads() == threads


def test_threads_are_as_before_where_a_call_fails() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            latencies({"a": lambda: 1 / 0})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_hardware_is_one_line_without_table_signs() -> None:
    assert hardware()
    assert not set(hardware()) & {"\n", "|"}
