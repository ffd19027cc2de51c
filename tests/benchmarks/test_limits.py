"""What a run asks of a machine, counted by hand."""

import pytest

from benchmarks import limits

# Multiply-adds of the Nature network over 84×84×4 with the 6 actions of Pong.
CONVOLUTIONS = (20 * 20 * 32 * 8 * 8 * 4, 9 * 9 * 64 * 4 * 4 * 32, 7 * 7 * 64 * 3 * 3 * 64)
LAYERS = (7 * 7 * 64 * 512, 512 * 6)
STATE = sum(CONVOLUTIONS) + sum(LAYERS)


def test_the_arithmetic_of_an_update() -> None:
    counted = limits.count_flops("pong")
    assert counted.state == 2 * STATE
    # Backward: towards the weights and towards the inputs, which the first layer's frames need not.
    assert counted.update == 32 * 2 * (3 * STATE - CONVOLUTIONS[0])


def test_limits_of_stages_by_hand() -> None:
    rates = {"min": 1e9, "median": 1.5e9, "max": 2e9}
    known = limits.Limits(
        matrix={"float32": rates, "bfloat16": {**rates, "max": 4e9}},
        emulator=10_000.0,
        copy=7_056e3,
        flops=limits.Flops(update=68_000, state=1_000),
    )
    seconds = known.seconds_per_million_frames("float32", updates_per_step=0.5, cores=4)
    # 250,000 agent steps; 125,000 updates of 68,000 and 32 × 1,000; 2e9 a second.
    assert seconds == pytest.approx(
        {
            "acting": 0.125,
            "learning": 6.25,
            "target_passes": 2.0,
            "emulator_wait": 25.0,
            "storing": 250.0,
        }
    )
    assert known.frames_per_second("float32", 0.5) == pytest.approx(1e6 / 6.375)
    assert known.frames_per_second("bfloat16", 0.5) == pytest.approx(2e6 / 6.375)
