"""The summary of rounds that were made up."""

import time
from typing import Any

import pytest

from benchmarks import limits, train_speed
from benchmarks.runs import Window

# An update takes 0.9 and acting in between 0.1 of a GFLOP.
FLOPS = limits.Flops(update=100_000_000, state=25_000_000)
PLAIN = "ebu, N=8"
NAMES = {
    "plain": PLAIN,
    "exact": "ebu deterministic, N=8",
    "fast": "ebu bfloat16, N=8",
    "one": "sb3, N=1",
    "two": "sb3, N=2",
    "processes": "sb3, N=2 in processes",
}


def made_up_round(rate: float, **frames: int) -> train_speed.Round:
    """Runs of 10 seconds each."""
    matrix = {
        precision: {"min": 0.5 * speed, "median": 0.5 * speed, "max": speed}
        for precision, speed in (("float32", rate), ("bfloat16", 2 * rate))
    }
    stages = {"acting": 1.0, "learning": 6.0, "target_passes": 2.0, "rest": 3.0}
    evaluation = {"vector_step": 0.002, "besides": 1.0}
    windows = {
        NAMES[key]: Window(10.0, count, count // 16, stages, evaluation)
        for key, count in frames.items()
    }
    return train_speed.Round(limits.Limits(matrix, 10_000.0, 1e9, FLOPS), windows)


def summary(rounds: list[train_speed.Round], **changes: Any) -> dict[str, Any]:
    settings = train_speed.Settings(agents=("ebu",), sb3_envs=(1, 2), **changes)
    return train_speed.summarise(rounds, settings)


def test_speeds_and_their_share_of_the_limit() -> None:
    # An update every 16 frames: 16 frames a second for every GFLOP/s.
    rounds = [made_up_round(1e9, plain=80), made_up_round(2e9, plain=80)]
    figures = summary(rounds)
    assert figures["speeds"][PLAIN]["frames_per_second"]["median"] == 8
    assert figures["speeds"][PLAIN]["updates_per_second"]["median"] == 0.5
    assert figures["limits"]["float32"]["frames_per_second"] == pytest.approx(
        {"min": 16, "median": 24, "max": 32}
    )
    assert figures["speeds"][PLAIN]["of_limit"] == pytest.approx(
        {"min": 0.25, "median": 0.375, "max": 0.5}
    )
    stages = figures["stages"][PLAIN]
    assert stages["shares"]["target_passes"] == 0.2
    assert stages["seconds_per_million_frames"]["rest"] == pytest.approx(3 * 1e6 / 80)
    assert figures["ratio"] == {}
    assert "| ebu, N=8 | 8 (8-8) | 0.5 | 37.5% |" in train_speed.table(figures)


def test_a_ratio_is_taken_within_a_round_over_the_fastest() -> None:
    rounds = [
        made_up_round(1e9, plain=200, fast=400, one=100, two=50, processes=40),
        made_up_round(1e9, plain=30, fast=90, one=10, two=20, processes=5),
        made_up_round(1e9, plain=900, fast=600, one=100, two=200, processes=300),
    ]
    figures = summary(rounds, against="sb3", precisions=("float32", "bfloat16"))
    assert figures["ratio"] == {"ebu": 2, "ebu bfloat16": 4}
    assert figures["ratios"]["ebu"] == {"min": 1.5, "median": 2, "max": 3}
    assert "ratio, ebu bfloat16 over SB3's fastest of the round: 4.00 (2.00-4.50)" in (
        train_speed.table(figures)
    )
    # Whichever precision comes first goes without saying.
    figures = summary(rounds, against="sb3", precisions=("bfloat16", "float32"))
    assert figures["ratio"] == {"ebu": 4, "ebu float32": 2}


def test_what_determinism_costs() -> None:
    rounds = [made_up_round(1e9, plain=100, exact=80), made_up_round(1e9, plain=200, exact=180)]
    figures = summary(rounds, deterministic=True)
    assert figures["deterministic"] == {
        "ebu": pytest.approx({"min": 0.8, "median": 0.85, "max": 0.9})
    }
    assert "ebu with --deterministic over without it: 0.85" in train_speed.table(figures)


def test_the_share_of_the_longest_evaluation() -> None:
    figures = summary([made_up_round(1e9, plain=400_000)], evaluate=True)
    # 18,000 frames are 4,500 steps of 2 ms, and 1 s besides; 100,000 frames take 2.5 s.
    assert figures["evaluation"][PLAIN] == pytest.approx(
        {"seconds": 10.0, "share": 10 / 12.5, "frames_per_second": 1e5 / 12.5}
    )
    assert "takes 10.0 s, 80.0% of a run; with it 8,000 frames/s" in train_speed.table(figures)


@pytest.mark.parametrize(("minutes", "played"), [(None, 3), (1.0, 3), (0.5, 2), (0.1, 1)])
def test_rounds_end_in_time(
    minutes: float | None, played: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of 15 seconds: the third would end after 45."""
    clock = [0.0]

    def take_15_seconds(*_: Any) -> limits.Limits:
        clock[0] += 15
        return limits.Limits({}, 1.0, 1.0, FLOPS)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(train_speed, "in_process", take_15_seconds)
    monkeypatch.setattr(train_speed, "measure", lambda *_: Window(1.0, 4, 1))
    settings = train_speed.Settings(agents=("ebu",), minutes=minutes)
    rounds = train_speed.play_rounds(settings)
    assert len(rounds) == played
    assert [list(each.windows) for each in rounds] == [[PLAIN]] * played
