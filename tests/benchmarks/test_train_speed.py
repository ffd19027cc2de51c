"""Timed windows, Stable-Baselines3's schedule, and the summary of made-up rounds."""

import time
from typing import Any

import pytest

from benchmarks import limits, runs, sb3, train_speed
from benchmarks.runs import Window
from ebu.errors import EbuError, UsageError
from ebu.stopwatch import SpeedMark

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


@pytest.mark.parametrize(
    ("num_envs", "updates_per_step", "schedule"),
    [(1, 0.25, (4, 1)), (2, 0.25, (2, 1)), (8, 0.25, (1, 2)), (3, 2.0, (1, 6)), (6, 0.1, (5, 3))],
)
def test_sb3_learns_as_often(
    num_envs: int, updates_per_step: float, schedule: tuple[int, int]
) -> None:
    assert sb3.sb3_schedule(num_envs, updates_per_step) == schedule


def test_a_rate_that_sb3_cannot_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--updates-per-step 0\.2501: SB3 .* 0\.25$"):
        sb3.sb3_schedule(1, 0.2501)


def test_a_window_begins_with_enough_updates_and_ends_after_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([100.0, 120.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = runs.WindowClock(runs.Conditions(window=10, warmup_updates=3))
    stages = {"acting": 1.0, "learning": 4.0, "storing": 2.0, "target_passes": 3.0}
    later = {"acting": 3.0, "sending": 1.0, "learning": 12.0, "storing": 2.0, "target_passes": 8.0}
    for mark, over in [
        (SpeedMark(0, 400, 2, {}), False),
        (SpeedMark(0, 416, 4, stages), False),
        (SpeedMark(0, 452, 8, later), False),
        (SpeedMark(0, 460, 9, later), True),
    ]:
        assert clock.look(mark) == over
    # No second was spent on storing. What is part of learning is not counted twice.
    spent = {"acting": 2.0, "sending": 1.0, "learning": 8.0, "target_passes": 5.0, "rest": 9.0}
    assert clock.window({}) == Window(20.0, 44, 5, spent)


@pytest.mark.parametrize(("updates", "compares"), [(256, True), (270, False)])
def test_a_run_that_learnt_at_another_rate_is_refused(
    updates: int, compares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_speed, "in_process", lambda *_: Window(1.0, 4_000, updates))
    contender = runs.Contender("ebu", 8)
    if compares:
        assert train_speed.time_run(contender, runs.Conditions(), 0).updates == updates
    else:
        with pytest.raises(EbuError, match=rf"^ebu, N=8 made {updates} gradient steps in 4000"):
            train_speed.time_run(contender, runs.Conditions(), 0)


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
    figures = summary([made_up_round(1e9, plain=80), made_up_round(2e9, plain=80)])
    run = figures["runs"][PLAIN]
    assert run["frames_per_second"]["median"] == 8
    assert run["updates_per_second"]["median"] == 0.5
    assert run["of_limit"] == pytest.approx({"min": 0.25, "median": 0.375, "max": 0.5})
    assert run["shares"]["target_passes"] == 0.2
    assert run["seconds_per_million_frames"]["rest"] == pytest.approx(3 * 1e6 / 80)
    assert "| ebu, N=8 | 8 (8-8) | 0.5 | 37.5% |" in train_speed.table(figures)


def test_a_ratio_is_taken_within_a_round_over_the_fastest() -> None:
    rounds = [
        made_up_round(1e9, plain=200, fast=400, one=100, two=50, processes=40),
        made_up_round(1e9, plain=30, fast=90, one=10, two=20, processes=5),
        made_up_round(1e9, plain=900, fast=600, one=100, two=200, processes=300),
    ]
    figures = summary(rounds, against="sb3", precisions=("float32", "bfloat16"))
    assert figures["runs"][PLAIN]["over_sb3"] == {"min": 1.5, "median": 2, "max": 3}
    assert figures["runs"][NAMES["fast"]]["over_sb3"] == {"min": 2, "median": 4, "max": 4.5}


def test_the_cost_of_determinism_and_of_an_evaluation() -> None:
    rounds = [made_up_round(1e9, plain=100, exact=80), made_up_round(1e9, plain=200, exact=180)]
    run = summary(rounds, deterministic=True)["runs"][NAMES["exact"]]
    assert run["over_usual"] == pytest.approx({"min": 0.8, "median": 0.85, "max": 0.9})

    figures = summary([made_up_round(1e9, plain=400_000)], evaluate=True)
    # 18,000 frames are 4,500 steps of 2 ms, and 1 s besides; 100,000 frames take 2.5 s.
    assert figures["runs"][PLAIN]["evaluation"] == pytest.approx(
        {"seconds": 10.0, "share": 10 / 12.5, "frames_per_second": 1e5 / 12.5}
    )


# Multiply-adds of the Nature network over 84×84×4 with the 6 actions of Pong.
CONVOLUTIONS = (20 * 20 * 32 * 8 * 8 * 4, 9 * 9 * 64 * 4 * 4 * 32, 7 * 7 * 64 * 3 * 3 * 64)
STATE = sum(CONVOLUTIONS) + 7 * 7 * 64 * 512 + 512 * 6


def test_the_arithmetic_of_an_update() -> None:
    counted = limits.count_flops("pong")
    assert counted.state == 2 * STATE
    # Backward: towards the weights and towards the inputs, which the first layer's frames need not.
    assert counted.update == 32 * 2 * (3 * STATE - CONVOLUTIONS[0])


def test_limits_of_stages_by_hand() -> None:
    rates = {"float32": {"max": 2e9}}
    known = limits.Limits(rates, 10_000.0, 7_056e3, limits.Flops(update=68_000, state=1_000))
    # 250,000 agent steps; 125,000 updates of 68,000 and 32 × 1,000; 2e9 a second.
    assert known.seconds_per_million_frames("float32", 0.5, cores=4) == pytest.approx(
        {
            "acting": 0.125,
            "learning": 6.25,
            "target_passes": 2.0,
            "emulator_wait": 25.0,
            "storing": 250.0,
        }
    )
    assert known.frames_per_second("float32", 0.5) == pytest.approx(1e6 / 6.375)
