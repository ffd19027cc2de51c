"""The play that fills the memory whose speed is measured."""

from itertools import islice

import numpy as np

from benchmarks import replay_speed


def test_games_and_segments_end_at_the_stated_rates() -> None:
    """Counts over 200,000 rows, in bands of 4.9 deviations: one false alarm in 10^6."""
    frames = np.zeros((4, 200, 1), dtype=np.uint8)
    rows = list(islice(replay_speed.played(frames, np.random.default_rng(0)), 1_000))
    terminated = np.stack([row[3] for row in rows])
    started = np.stack([row[5] for row in rows])
    ends, games = terminated.sum(), started[1:].sum()
    expected = (~started).sum() / replay_speed.STEPS_PER_SEGMENT
    assert abs(ends - expected) < 4.9 * expected**0.5
    assert abs(games - ends / replay_speed.SEGMENTS_PER_GAME) < 4.9 * (ends * 0.2 * 0.8) ** 0.5


def test_a_game_starts_at_once_or_after_an_end() -> None:
    frames = np.arange(3 * 50, dtype=np.uint8).reshape(3, 50, 1)
    rows = list(islice(replay_speed.played(frames, np.random.default_rng(1)), 500))
    for number, (newest, _, _, terminated, truncated, started, _) in enumerate(rows):
        assert (newest == frames[number % 3]).all()
        assert not truncated.any()
        assert not (terminated & started).any()
        before = rows[number - 1][3] if number else np.ones(50, dtype=bool)
        assert not (started & ~before).any()
    assert rows[0][5].all()
