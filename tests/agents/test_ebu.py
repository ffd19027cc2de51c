"""Episodic Backward Update: the order of the minibatches, and the targets."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import Agent
from agents.segment_target import PASS_STATES, pass_sizes
from agents.settings import EbuConfig
from ebu.segments import Segment
from tests.agents.oracles import ebu, targets_of
from tests.made_up import (
    GAMMA,
    Game,
    MadeUpGames,
    Played,
    TableLearner,
    TwoTables,
    Update,
    draws_in_order,
    ebu_of,
    one_stream,
    places,
    random_games,
    rows,
    targets_by_row,
    trained,
)

# --- resets ---------------------------------------------------------------------------------


class ResetLearner(TableLearner):
    """Has other values after three updates, as if its network had been reset."""

    longest_group = 1

    def count_updates(self, count: int) -> bool:
        super().count_updates(count)
        self.salt = int(self.updates >= 3)
        return self.updates == 3


@pytest.mark.parametrize("mix", [1, 4])
def test_after_a_reset_no_target_is_of_the_old_network(mix: int) -> None:
    played, _ = one_stream(*[200] * 4)
    learner, reset = ResetLearner(), ResetLearner()
    reset.updates, reset.salt = 3, 1
    for each, updates in ((learner, 3 + 8), (reset, 200)):
        ebu_of(each, mix_segments=mix).learn(played.replay, updates)
    expected = targets_by_row(reset.noted)
    found = targets_by_row(learner.noted[3:])
    assert found
    assert found == {row: expected[row] for row in found}


# --- the order ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "minibatches"),
    [
        # From its end to its start.
        (
            (96, 64),
            [rows(1, 65, 96), rows(1, 33, 64), rows(1, 1, 32), rows(2, 33, 64), rows(2, 1, 32)],
        ),
        # A short last minibatch is filled from the tail of a draw that is then dropped.
        ((38, 50, 40), [rows(1, 7, 38), rows(1, 1, 6) | rows(2, 25, 50), rows(3, 9, 40)]),
        # As many draws fill it as it takes.
        (
            (33, 5, 10, 40, 64),
            [
                rows(1, 2, 33),
                rows(1, 1, 1) | rows(2, 1, 5) | rows(3, 1, 10) | rows(4, 25, 40),
                rows(5, 33, 64),
                rows(5, 1, 32),
            ],
        ),
    ],
)
def test_the_order_by_hand(
    lengths: tuple[int, ...], minibatches: list[set[tuple[int, int]]]
) -> None:
    played, segments = one_stream(*lengths)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, ebu_of(learner), played.replay, len(minibatches)) == minibatches


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=8),
    batch_size=st.sampled_from([4, 32]),
)
def test_minibatches_follow_the_description_for_any_lengths(
    lengths: list[int], batch_size: int
) -> None:
    played, segments = one_stream(*lengths)
    draws_in_order(played.replay, cycle(segments))
    learner = TableLearner()
    agent = ebu_of(learner, batch_size=batch_size)
    games = cycle(enumerate(lengths, 1))
    left: list[tuple[int, int]] = []  # of the segment in progress, from its start
    for update in range(12):
        if not left:
            game, length = next(games)
            left = sorted(rows(game, 1, length))
        expected, left = left[-batch_size:], left[:-batch_size]
        while (missing := batch_size - len(expected)) > 0:
            game, length = next(games)
            expected = expected + sorted(rows(game, 1, length))[-missing:]
        agent.learn(played.replay, 1)
        actual = [(game, step) for _, game, step in places(learner.noted[update].states)]
        assert sorted(actual) == sorted(expected)


# --- several segments side by side ----------------------------------------------------------


def test_mixed_minibatches_hold_consecutive_transitions_of_each_segment() -> None:
    played, segments = one_stream(20, 16, 40, 24, 30, 17, 8, 26, 9)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    agent = ebu_of(learner, mix_segments=4)
    assert trained(learner, agent, played.replay, 5) == [
        rows(1, 13, 20) | rows(2, 9, 16) | rows(3, 33, 40) | rows(4, 17, 24),
        rows(1, 5, 12) | rows(2, 1, 8) | rows(3, 25, 32) | rows(4, 9, 16),
        # A draw that is used up is replaced by the next one, which continues where it was left.
        rows(1, 1, 4) | rows(5, 27, 30) | rows(6, 10, 17) | rows(3, 17, 24) | rows(4, 1, 8),
        rows(5, 19, 26) | rows(6, 2, 9) | rows(3, 9, 16) | rows(7, 1, 8),
        rows(5, 11, 18) | rows(6, 1, 1) | rows(8, 20, 26) | rows(3, 1, 8) | rows(9, 2, 9),
    ]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    mix=st.sampled_from([2, 4, 32]),
)
def test_mixed_draws_are_trained_whole_whatever_their_lengths(lengths: list[int], mix: int) -> None:
    played, segments = one_stream(*lengths)
    drawn = dict.fromkeys(range(1, len(lengths) + 1), 0)

    def counted() -> Iterator[Segment]:
        for game, segment in cycle(enumerate(segments, 1)):
            drawn[game] += 1
            yield segment

    draws_in_order(played.replay, counted())
    learner = TableLearner()
    ebu_of(learner, mix_segments=mix).learn(played.replay, updates=12)
    counts = {(game, step): 0 for game in drawn for step in range(1, lengths[game - 1] + 1)}
    for update in learner.noted:
        for _, game, step in places(update.states):
            counts[game, step] += 1
    unfinished = 0
    for game, length in enumerate(lengths, 1):
        of_game = [counts[game, step] for step in range(1, length + 1)]
        # From the end to the start: once for each draw, but for what is left of the last ones.
        assert of_game == sorted(of_game)
        assert of_game[-1] == drawn[game]
        unfinished += drawn[game] - of_game[0]
    assert unfinished <= mix


# --- the targets ----------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mix", [1, 4])
def test_targets_follow_algorithm_2_for_every_beta(double: bool, beta: float, mix: int) -> None:
    played, _ = one_stream(45, Game(45, truncated=True), 1, Game(1, truncated=True), 20)
    learner = TwoTables()
    agent = ebu_of(learner, beta=beta, double=double, mix_segments=mix)
    agent.learn(played.replay, updates=30)
    expected = targets_of(played, agent.config)
    for update in learner.noted:
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == pytest.approx(expected[place], rel=1e-6, abs=1e-6)
    if beta == 0 and not double:
        assert agent.metrics()["q/backward_minus_one_step"] == 0


@given(length=st.integers(1, 5000), device=st.sampled_from(["cpu", "cuda"]))
def test_passes_hold_a_segment_with_little_padding_in_few_sizes(length: int, device: str) -> None:
    sizes = pass_sizes(length, device)
    largest, padding = PASS_STATES[device], sum(sizes) - length
    assert 0 <= padding < {"cpu": 8, "cuda": max(32, length, largest)}[device]
    assert all(size == largest for size in sizes[:-1])
    assert sizes[-1] <= largest
    allowed = range(8, 257, 8) if device == "cpu" else (32, 64, 128, 256, 512)
    assert sizes[-1] in allowed


def test_the_targets_of_a_long_segment_come_from_several_passes() -> None:
    played, segments = one_stream(600)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    ebu_of(learner).learn(played.replay, 18)
    assert learner.passes == [256, 256, 88]
    expected = ebu(played.transitions(1, 1), EbuConfig(gamma=GAMMA))
    targets = targets_by_row(learner.noted)
    assert [targets[1, step] for step in range(25, 601)] == pytest.approx(expected[24:], abs=1e-5)


@pytest.mark.parametrize("mix", [1, 2])
def test_targets_are_computed_once_for_a_draw(mix: int) -> None:
    played, segments = one_stream(96, 96, 96)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    agent = ebu_of(learner, mix_segments=mix)
    agent.learn(played.replay, 1)
    asked = len(learner.passes)
    assert sum(learner.passes) == 96 * mix
    agent.learn(played.replay, 3 * mix - 1)
    assert len(learner.passes) == asked
    targets = targets_by_row(learner.noted)
    for game in range(1, mix + 1):
        expected = ebu(played.transitions(1, game), EbuConfig(gamma=GAMMA))
        assert [targets[game, step] for step in range(1, 97)] == pytest.approx(expected, abs=1e-5)


def filled_and_whole(learner: Any, updates: list[Update]) -> tuple[list[float], list[float]]:
    """Targets of a segment's last 26 transitions: as a filling, and of the whole segment."""
    played, (main, filler) = one_stream(38, 60)
    draws_in_order(played.replay, [main, filler, filler])
    ebu_of(learner).learn(played.replay, updates=3)
    of_filling = targets_by_row(updates[1:2])
    of_whole = targets_by_row(updates[2:3])
    tail = sorted(rows(2, 35, 60))
    return [of_filling[row] for row in tail], [of_whole[row] for row in tail]


def test_targets_of_a_filling_tail_are_those_of_its_whole_segment() -> None:
    learner = TableLearner()
    filling, whole = filled_and_whole(learner, learner.noted)
    assert filling == whole
    # 38 of the first, a tail of 26 alone, and all 60 of the third, in whole groups of 8.
    assert learner.passes == [40, 32, 64]


# --- draws whose frames are overwritten -----------------------------------------------------

RING = 256  # Segments are cut at a quarter of it: 64 steps.


def half_trained_segment() -> tuple[Played, TableLearner, Agent]:
    """A long game, and the second half of its first segment trained."""
    played = Played(MadeUpGames(1, lambda env, game: Game(10_000)), capacity=RING)
    played.play(200)
    learner = TableLearner()
    agent = ebu_of(learner)
    draws_in_order(played.replay, [Segment(0, 0, 64, False), Segment(0, 192, 64, False)])
    assert trained(learner, agent, played.replay, 1) == [rows(1, 33, 64)]
    return played, learner, agent


@pytest.mark.parametrize("overwritten", [1, 20, 150, 5 * RING])
def test_a_draw_forfeits_what_has_been_overwritten(overwritten: int) -> None:
    played, learner, agent = half_trained_segment()
    played.play(RING - played.count + overwritten)
    latest = (played.count - 1) // 64 * 64  # where the newest cut was made
    draws_in_order(played.replay, [Segment(0, latest - 64, 64, False)])
    assert trained(learner, agent, played.replay, 1) == [rows(1, latest - 31, latest)]
    assert agent.metrics()["replay/forfeited_draws"] == 1
    assert trained(learner, agent, played.replay, 1) == [rows(1, latest - 63, latest - 32)]
    assert agent.metrics()["replay/forfeited_draws"] == 1


@pytest.mark.parametrize("mix", [1, 4])
def test_a_ring_driven_hard_makes_draws_forfeit_and_trains_on_nothing_overwritten(mix: int) -> None:
    played = Played(MadeUpGames(2, random_games(3, 40)), capacity=160, seed=3)
    learner = TableLearner()
    agent = ebu_of(learner, 3, batch_size=4, mix_segments=mix)
    for _ in range(300):
        played.play(7)
        agent.learn(played.replay, 1 if len(played.replay.segments) else 0)
        for update in learner.noted:
            played.check(update)
        learner.noted.clear()
    assert agent.metrics()["replay/forfeited_draws"] > 10
