"""The study of the chain: its curves against exact ones, its files, its errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from ebu.errors import UsageError
from studies.chain.__main__ import main
from studies.chain.report import record, table
from studies.chain.study import (
    CHAINS,
    CONFIDENCE,
    Curve,
    Settings,
    measure,
)

ROOT = Path(__file__).resolve().parents[2]
RUNS, UPDATES = 4_000, 50
# The curves of right draws fail by chance once in a million seeds, and the seed is fixed.
ERROR_RATE = 1e-6


Chains = dict[int, dict[str, Curve]]


@pytest.fixture(scope="module")
def chains() -> Chains:
    settings = Settings(out=Path("unused"), runs=RUNS, updates=UPDATES, seed=1)
    return {num_states: measure(settings, num_states) for num_states in CHAINS}


def exact_uniform(num_states: int) -> np.ndarray:
    """Probability of having learnt after 0, 1, … uniform draws.

    The states learn from the goal backward, each by one transition out of T, but s2 by the two
    that lead to s3: a walk through stages, each left with the probability of its draw.
    """
    leaving = np.array([1.0] * (num_states - 3) + [2.0, 1.0]) / (num_states + 1)
    stages = np.eye(num_states)[0]
    probabilities = []
    for _ in range(UPDATES + 1):
        probabilities.append(stages[-1])
        moved = stages[:-1] * leaving
        stages[:-1] -= moved
        stages[1:] += moved
    return np.array(probabilities)


def assert_binomial(curve: Curve, exact: np.ndarray) -> None:
    """Every count fits its probability, all of them together at the error rate."""
    for learnt, probability in zip(curve.learnt, exact, strict=True):
        pvalue = scipy.stats.binomtest(int(learnt), curve.runs, float(probability)).pvalue
        assert pvalue > ERROR_RATE / len(exact)


@pytest.mark.parametrize(("num_states", "updates"), [(4, 5), (5, 6)])
def test_backward_sweeps_learn_with_the_last_update_of_the_first_sweep(
    chains: Chains, num_states: int, updates: int
) -> None:
    curve = chains[num_states]["backward"]
    assert curve.probability.tolist() == [0.0] * updates + [1.0] * (UPDATES + 1 - updates)
    low, high = curve.interval
    assert (low == high).all()


@pytest.mark.parametrize("num_states", CHAINS)
def test_uniform_draws_follow_the_exact_curve(chains: Chains, num_states: int) -> None:
    assert_binomial(chains[num_states]["uniform"], exact_uniform(num_states))


@pytest.mark.parametrize("num_states", CHAINS)
def test_with_current_errors_the_wrong_turn_costs_half_of_the_runs_an_update(
    chains: Chains, num_states: int
) -> None:
    # In order from the goal; the last step ties with the wrong turn. The floor of the priorities
    # lets two to four runs in a thousand draw something else on the way.
    probability = chains[num_states]["prioritized, current errors"].probability
    shortest = num_states - 1
    assert probability[shortest - 1] == 0.0
    half_way = round(float(probability[shortest]) * RUNS)
    assert scipy.stats.binomtest(half_way, RUNS, 0.4985).pvalue > ERROR_RATE
    assert probability[shortest + 1] > 0.99


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    learnt = np.array([0, 1, 37, 99, 100])
    ends = Curve(learnt, runs=100, drawn=True).interval
    for count, low, high in zip(learnt, *ends, strict=True):
        expected = scipy.stats.binomtest(int(count), 100).proportion_ci(CONFIDENCE, method="exact")
        assert (low, high) == pytest.approx(tuple(expected), abs=1e-9)


def test_updates_needed_by_hand() -> None:
    curve = Curve(np.array([0, 45, 55, 80, 100]), runs=100, drawn=True)
    # 45 of 100: [0.35, 0.55]; 55: [0.45, 0.65]; 80: [0.71, 0.87]
    assert curve.updates_needed(0.5) == (2, 1, 3)
    assert curve.updates_needed(1.0) == (4, 4, None)
    assert Curve(np.array([0, 45]), runs=100, drawn=True).updates_needed(0.95) == (None, None, None)
    assert Curve(np.array([0, 0, 1]), runs=1, drawn=False).updates_needed(1.0) == (2, 2, 2)
    lines = table({5: {"uniform": curve}}).splitlines()
    assert lines[-1] == "| 5 | uniform | 2 [1, 3] | 4 [4, 4] | 4 |"


def test_the_data_are_a_function_of_the_settings() -> None:
    def measured(seed: int) -> str:
        settings = Settings(out=Path("unused"), runs=20, updates=8, seed=seed)
        chains = {num_states: measure(settings, num_states) for num_states in CHAINS}
        return json.dumps(record(settings, chains))

    assert measured(0) == measured(0) != measured(1)


def test_the_script_writes_data_picture_and_table(tmp_path: Path) -> None:
    out = tmp_path / "new" / "chain"
    command = [sys.executable, "-W", "error", "-m", "studies.chain"]
    done = subprocess.run(
        [*command, "--out", str(out), "--runs", "10", "--updates", "7"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "| 4 | backward | 5 | 5 | 5 |" in done.stdout.splitlines()
    assert "| 5 | backward | 6 | 6 | 6 |" in done.stdout.splitlines()
    assert {path.name for path in out.iterdir()} == {"chain.json", "chain.png"}
    assert (out / "chain.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flags", [["--runs", "0"], ["--updates", "0"], ["--seed", "-1"]])
def test_what_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["chain", "--out", str(tmp_path), *flags])
    with pytest.raises(UsageError, match=f"{flags[0]} must"):
        main()
