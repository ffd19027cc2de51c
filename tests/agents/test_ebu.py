"""Episodic Backward Update: the order of the minibatches, and the targets."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import Learner, LearnerConfig
from agents.backward import PASS_STATES, pass_sizes
from ebu.segments import Segment
from tests.made_up import (
    CPU,
    GAMMA,
    NUM_ACTIONS,
    Game,
    MadeUpGames,
    Played,
    Seen,
    TableLearner,
    Update,
    draws_in_order,
    ebu_of,
    one_step_target,
    one_stream,
    one_terminated_game,
    places,
    rows,
    table_values,
    targets_by_row,
    trained,
)


def algorithm_2(
    segment: Sequence[Seen], *, beta: float, clip: bool = True, salt: int = 0
) -> np.ndarray:
    """Targets (T,) of a played segment by the table of Algorithm 2, as it is printed."""
    rewards = np.array([seen.reward for seen in segment])
    if clip:
        rewards = rewards.clip(-1, 1)
    next_states = torch.from_numpy(np.stack([seen.next_state for seen in segment]))
    table = table_values(next_states, salt).double().numpy()
    y = np.zeros(len(segment))
    last = len(segment) - 1
    y[last] = rewards[last] + (0 if segment[last].terminated else GAMMA * table[last].max())
    for k in reversed(range(last)):
        action = segment[k + 1].action
        table[k, action] = beta * y[k + 1] + (1 - beta) * table[k, action]
        y[k] = rewards[k] + GAMMA * table[k].max()
    return y


# --- the order ------------------------------------------------------------------------------


def test_a_segment_is_trained_from_its_end_to_its_start() -> None:
    played, segments = one_stream(96, 64)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, ebu_of(learner), played.replay, 5) == [
        rows(1, 65, 96),
        rows(1, 33, 64),
        rows(1, 1, 32),
        rows(2, 33, 64),
        rows(2, 1, 32),
    ]


def test_a_short_last_minibatch_is_filled_from_the_tail_of_a_draw_that_is_let_go() -> None:
    played, segments = one_stream(38, 50, 40)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, ebu_of(learner), played.replay, 3) == [
        rows(1, 7, 38),
        rows(1, 1, 6) | rows(2, 25, 50),
        rows(3, 9, 40),
    ]


def test_a_segment_shorter_than_a_minibatch_is_filled_as_well() -> None:
    played, segments = one_stream(5, 60, 40)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, ebu_of(learner), played.replay, 2) == [
        rows(1, 1, 5) | rows(2, 34, 60),
        rows(3, 9, 40),
    ]


def test_as_many_draws_fill_a_minibatch_as_it_takes() -> None:
    played, segments = one_stream(33, 5, 10, 40, 64)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, ebu_of(learner), played.replay, 4) == [
        rows(1, 2, 33),
        rows(1, 1, 1) | rows(2, 1, 5) | rows(3, 1, 10) | rows(4, 25, 40),
        rows(5, 33, 64),
        rows(5, 1, 32),
    ]


def test_a_filling_draw_that_just_suffices_is_used_up() -> None:
    played, segments = one_stream(36, 28, 32, 32)
    draws_in_order(played.replay, segments)
    learner = TableLearner()
    assert trained(learner, ebu_of(learner), played.replay, 4) == [
        rows(1, 5, 36),
        rows(1, 1, 4) | rows(2, 1, 28),
        rows(3, 1, 32),
        rows(4, 1, 32),
    ]


def test_every_transition_of_a_drawn_segment_is_trained_once() -> None:
    played, (main, filler) = one_stream(71, 40)
    draws_in_order(played.replay, cycle([main, filler]))
    learner = TableLearner()
    counts = dict.fromkeys(rows(1, 1, 71) | rows(2, 1, 40), 0)
    rounds = 5
    for minibatch in trained(learner, ebu_of(learner), played.replay, 3 * rounds):
        for row in minibatch:
            counts[row] += 1
    tail = rows(2, 16, 40)  # 71 = 2 · 32 + 7, and 25 are missing
    for row, count in counts.items():
        assert count == (rounds if row[0] == 1 or row in tail else 0)


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
        actual = [(game, step) for _, game, step in places(learner.updates[update].states)]
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
        # What is used up is replaced by the next draw, which goes on where it got to.
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
    for update in learner.updates:
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

ENDINGS = {
    "terminated": Game(45),
    "truncated": Game(45, truncated=True),
    "one step": Game(1),
    "one step, truncated": Game(1, truncated=True),
}


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("game", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mix", [1, 4])
def test_targets_are_those_of_algorithm_2(beta: float, game: Game, clip: bool, mix: int) -> None:
    played, _ = one_stream(game)
    learner = TableLearner()
    ebu_of(learner, beta=beta, clip_rewards=clip, mix_segments=mix).learn(played.replay, 6)
    segment = played.transitions(1, 1)
    expected = algorithm_2(segment, beta=beta, clip=clip)
    targets = targets_by_row(learner.updates)
    assert targets.keys() == rows(1, 1, game.length)
    for step, target in enumerate(expected, 1):
        assert targets[1, step] == pytest.approx(target, rel=1e-6, abs=1e-6)
    for update in learner.updates:
        played.check(update)


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = one_terminated_game([0.0, 0.5, 1.0], action=2)
    learner = TableLearner()
    values = torch.tensor([0.4, 0.2, 0.8])
    monkeypatch.setattr(learner, "target_values", lambda s: values.repeat(len(s), 1))
    ebu_of(learner, gamma=0.5, beta=0.5, batch_size=3).learn_once(replay)
    # y3 = 1; y2 = 0.5 + 0.5 max(0.4, 0.5 · 1 + 0.5 · 0.8) = 0.95;
    # y1 = 0 + 0.5 max(0.4, 0.5 · 0.95 + 0.5 · 0.8) = 0.4375.
    targets = targets_by_row(learner.updates)
    assert [targets[step, step] for step in (1, 2, 3)] == pytest.approx([0.4375, 0.95, 1.0])


def test_lost_lives_end_the_value_and_a_segment() -> None:
    played = Played(MadeUpGames(1, lambda env, game: Game(50, life_losses=(20,))), capacity=400)
    played.play(50)
    assert played.replay.num_segments == 2
    learner = TableLearner()
    ebu_of(learner, beta=1.0).learn(played.replay, updates=20)
    game, targets = played.transitions(1, 1), targets_by_row(learner.updates)
    expected = [*algorithm_2(game[:20], beta=1.0), *algorithm_2(game[20:], beta=1.0)]
    assert [targets[1, step] for step in range(1, 51)] == pytest.approx(expected, abs=1e-5)


def test_with_beta_0_targets_are_one_step_targets() -> None:
    played, _ = one_stream(40, Game(7, truncated=True), 20)
    learner = TableLearner()
    agent = ebu_of(learner, beta=0.0)
    agent.learn(played.replay, updates=30)
    for update in learner.updates:
        for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
            assert target == one_step_target(played.seen[place])
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
    expected = algorithm_2(played.transitions(1, 1), beta=0.5)
    targets = targets_by_row(learner.updates)
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
    learner.salt = 1  # The target network is another one from here on.
    agent.learn(played.replay, 3 * mix - 1)
    assert len(learner.passes) == asked
    targets = targets_by_row(learner.updates)
    for game in range(1, mix + 1):
        expected = algorithm_2(played.transitions(1, game), beta=0.5, salt=0)
        assert [targets[game, step] for step in range(1, 97)] == pytest.approx(expected, abs=1e-5)
    if mix == 1:
        agent.learn(played.replay, 1)
        target = targets_by_row(learner.updates[-1:])[2, 96]
        expected = algorithm_2(played.transitions(1, 2), beta=0.5, salt=1)
        assert target == pytest.approx(expected[-1], abs=1e-5)


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
    filling, whole = filled_and_whole(learner, learner.updates)
    assert filling == whole
    # 38 of the first, a tail of 26 alone, and all 60 of the third, in whole groups of 8.
    assert learner.passes == [40, 32, 64]


def test_targets_of_a_filling_tail_with_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(
        LearnerConfig(),
        stack=3,
        frame_shape=(3,),
        num_actions=NUM_ACTIONS,
        device=CPU,
        precision="float32",
        rng=np.random.default_rng(0),
    )
    notes = TableLearner()
    monkeypatch.setattr(learner, "update", notes.update)
    filling, whole = filled_and_whole(learner, notes.updates)
    assert filling == pytest.approx(whole, rel=1e-6)
