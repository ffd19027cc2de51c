"""Predicted values against returns, by hand."""

from typing import Any

import numpy as np
import pytest

from ebu.value_probes import NEGLIGIBLE, ValueProbes
from envs import VectorStep

NO = np.zeros(1, dtype=bool)
YES = np.ones(1, dtype=bool)


def play(probes: ValueProbes, rewards: list[float], value: float, **last: bool) -> None:
    """Take steps in one environment, each begun with this value; the last one with these flags."""
    for index, reward in enumerate(rewards, 1):
        if probes.free()[0]:
            probes.begin(probes.free(), np.array([value], np.float32))
        flags = {name: np.array([index == len(rewards) and on]) for name, on in last.items()}
        row: dict[str, Any] = dict.fromkeys(("terminated", "truncated", "life_lost", "started"), NO)
        step = VectorStep(
            frames=np.zeros((1, 1)), rewards=np.array([reward], np.float32), **{**row, **flags}
        )
        probes.add(step, step.terminated, step.truncated)


def test_a_probe_holds_the_discounted_clipped_rewards_to_the_segments_end() -> None:
    probes = ValueProbes(1, gamma=0.5, clip_rewards=True)
    play(probes, [0.0, 3.0, -0.5], 2.0, terminated=True)
    assert probes.metrics() == {"q/predicted": 2.0, "q/earned": 0.5 * 1.0 - 0.25 * 0.5}
    assert probes.metrics() == {}


def test_raw_rewards_count_where_targets_take_them() -> None:
    probes = ValueProbes(1, gamma=0.5, clip_rewards=False)
    play(probes, [4.0, 8.0], 1.0, terminated=True)
    assert probes.metrics() == {"q/predicted": 1.0, "q/earned": 8.0}


@pytest.mark.parametrize("flag", ["truncated", "started"])
def test_a_return_that_is_not_known_is_left_out(flag: str) -> None:
    probes = ValueProbes(1, gamma=0.5, clip_rewards=True)
    play(probes, [1.0, 1.0], 1.0, **{flag: True})
    assert probes.metrics() == {}
    assert probes.free()[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_a_long_segment_has_many_probes(gamma: float) -> None:
    probes = ValueProbes(1, gamma=gamma, clip_rewards=True)
    play(probes, [1.0] * 300, 3.0)
    found = probes.metrics()
    assert found["q/predicted"] == 3.0
    whole = 1 / (1 - gamma)
    assert (1 - NEGLIGIBLE) * whole <= found["q/earned"] <= whole


def test_environments_are_counted_apart_and_resume() -> None:
    probes = ValueProbes(2, gamma=1.0, clip_rewards=True)
    probes.begin(np.array([True, True]), np.array([1.0, 5.0], np.float32))
    none = np.zeros(2, dtype=bool)
    step = VectorStep(np.zeros((2, 1)), np.array([1.0, 0.0], np.float32), none, none, none, none)
    probes.add(step, none, none)
    resumed = ValueProbes(2, gamma=1.0, clip_rewards=True)
    resumed.load_state_dict(probes.state_dict())
    resumed.add(step, np.array([True, False]), none)
    assert resumed.metrics() == {"q/predicted": 1.0, "q/earned": 2.0}
    assert resumed.free().tolist() == [True, False]
