"""How a run is timed, and in which rhythm Stable-Baselines3 learns beside it."""

import time
from collections.abc import Callable
from typing import cast

import pytest

from benchmarks import runs, sb3, train_speed
from ebu.errors import EbuError, UsageError
from ebu.stopwatch import Mark
from ebu.training import Trainer


def conditions(**changes: float) -> runs.Conditions:
    return runs.Conditions(**{"window": 10, "warmup_updates": 3, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_envs", "updates_per_step", "rhythm"),
    [
        (1, 0.25, (4, 1)),
        (2, 0.25, (2, 1)),
        (8, 0.25, (1, 2)),
        (8, 1.0, (1, 8)),
        (3, 2.0, (1, 6)),
        (6, 0.1, (5, 3)),
        (1, 1 / 3, (3, 1)),
    ],
)
def test_sb3_learns_as_often(
    num_envs: int, updates_per_step: float, rhythm: tuple[int, int]
) -> None:
    assert sb3.sb3_schedule(num_envs, updates_per_step) == rhythm


@pytest.mark.parametrize("rate", [0.2501, 0.001, 3.14159])
def test_a_rate_that_sb3_cannot_have_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=rf"^--updates-per-step {rate}: SB3 .* 0\.25$"):
        sb3.sb3_schedule(1, rate)


def test_a_window_begins_with_enough_updates_and_ends_after_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([100.0, 120.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    stopwatch = runs.Stopwatch(conditions())
    stages = {"acting": 1.0, "learning": 4.0, "storing": 2.0, "target_passes": 3.0}
    later = {"acting": 3.0, "sending": 1.0, "learning": 12.0, "storing": 2.0, "target_passes": 8.0}
    moments = [
        (Mark(0, 400, 2, {}), False),
        (Mark(0, 416, 4, stages), False),
        (Mark(0, 452, 8, later), False),
        (Mark(0, 460, 9, later), True),
    ]
    for moment, over in moments:
        assert stopwatch.look(moment) == over
    window = stopwatch.window({"vector_step": 0.5})
    assert (window.seconds, window.frames, window.updates) == (20.0, 44, 5)
    # No second was spent on storing. What is part of learning is not counted twice.
    assert window.stages == {
        "acting": 2.0,
        "sending": 1.0,
        "learning": 8.0,
        "target_passes": 5.0,
        "rest": 9.0,
    }
    assert window.evaluation == {"vector_step": 0.5}


@pytest.mark.parametrize(("updates", "compares"), [(250, True), (256, True), (270, False)])
def test_a_run_that_learnt_at_another_rate_is_refused(
    updates: int, compares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_speed, "in_process", lambda *_: runs.Window(1.0, 4_000, updates))
    if compares:
        assert train_speed.measure(runs.Contender("ebu", 8), conditions(), 0).updates == updates
    else:
        with pytest.raises(EbuError, match=rf"^ebu, N=8 made {updates} gradient steps in 4000"):
            train_speed.measure(runs.Contender("ebu", 8), conditions(), 0)


def test_an_evaluation_is_timed_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are played the second counts: 3 steps of 2 seconds, 4 seconds besides."""
    clock = [0.0]

    class Played:
        frames = 400
        evaluations = 0

        def evaluate(self, frames: int, should_stop: Callable[[], bool]) -> None:
            assert frames == 400
            self.evaluations += 1
            clock[0] += 1
            for _ in range(4):
                assert not should_stop()
                clock[0] += 2 if self.evaluations == 2 else 50
            clock[0] += 1

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    played = Played()
    figures = runs.time_evaluation(cast(Trainer, played))
    assert played.evaluations == 2
    assert figures == {"vector_step": 2.0, "besides": 4.0}
