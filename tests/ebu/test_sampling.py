"""Samplers: how often what is drawn, in which order, and with which weights."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ebu.errors import EbuError
from ebu.replay import EpisodicReplay
from ebu.sampling import (
    SMALLEST_PRIORITY,
    Minibatches,
    Priorities,
    PrioritizedTransitions,
    Sampler,
    TransitionSampler,
)
from ebu.segment_sampling import PrioritizedSegments, SegmentSampler
from tests.made_up import (
    Game,
    MadeUpGames,
    Place,
    Played,
    draws_in_order,
    empty_replay,
    games_of,
    one_stream,
    places,
    random_games,
    same,
)

# A test of frequencies with this level fails a correct sampler once in a million seeds.
ERROR_RATE = 1e-6
ALPHA = 0.6


def priorities_with(
    exponent: float = ALPHA, importance_exponent: float = 0.4, updates: int = 40_000
) -> Priorities:
    return Priorities(exponent, importance_exponent, updates)


def prioritized(
    batch_size: int = 8, priorities: Priorities | None = None, seed: int = 0
) -> PrioritizedTransitions:
    rng = np.random.default_rng(seed)
    return PrioritizedTransitions(rng, batch_size, priorities or priorities_with())


def error_at(states: Tensor) -> Tensor:
    """A made-up error of a state, some of them negative, (B,)."""
    env, game, step = states[:, -1].unbind(1)
    return ((env * 7 + game * 13 + step * 29) % 17 - 5) / 8


def priority(error: float, exponent: float = ALPHA) -> float:
    return float((abs(error) + SMALLEST_PRIORITY) ** exponent)


def one_by_one(sampler: Sampler, replay: EpisodicReplay, updates: int) -> Iterator[Minibatches]:
    """The minibatches of as many updates, each sampled when it is asked for."""
    for _ in range(updates):
        yield sampler.sample(replay, 1)


def states_of(replay: EpisodicReplay, minibatches: Minibatches) -> Tensor:
    return replay.read(minibatches.steps.ravel(), minibatches.streams.ravel()).states


def train(
    sampler: PrioritizedTransitions | PrioritizedSegments, replay: EpisodicReplay, updates: int
) -> list[tuple[list[Place], np.ndarray]]:
    """Draw and give the made-up errors back: the places and weights of each minibatch."""
    drawn = []
    for minibatch in one_by_one(sampler, replay, updates):
        states = states_of(replay, minibatch)
        assert minibatch.weights is not None
        drawn.append((places(states), minibatch.weights[0].copy()))
        sampler.update_priorities(replay, minibatch, error_at(states))
    return drawn


def counts_of(drawn: Iterable[list[Place]], candidates: Iterable[Place]) -> dict[Place, int]:
    counts = dict.fromkeys(candidates, 0)
    for minibatch in drawn:
        for place in minibatch:
            counts[place] += 1
    return counts


def leaves(sampler: PrioritizedTransitions) -> np.ndarray:
    found: np.ndarray = sampler.state_dict()["leaves"]
    return found


def leaf_of(played: Played, place: Place) -> int:
    step = np.array([played.seen[place].step])
    return int(played.replay.transitions.places(step, np.array([place[0] - 1]))[0])


def test_transitions_are_drawn_uniformly_games_in_progress_included() -> None:
    played = Played(MadeUpGames(2, games_of([7, 30])), capacity=400)
    played.play(25)
    sampler = TransitionSampler(np.random.default_rng(0), 32)
    drawn = [
        places(states_of(played.replay, each)) for each in one_by_one(sampler, played.replay, 300)
    ]
    assert scipy.stats.chisquare([*counts_of(drawn, played.seen).values()]).pvalue > ERROR_RATE


@pytest.mark.parametrize(
    "sampler_of",
    [
        lambda: TransitionSampler(np.random.default_rng(0), 32),
        lambda: SegmentSampler(np.random.default_rng(0), 8, 1),
        lambda: SegmentSampler(np.random.default_rng(0), 8, 4),
    ],
    ids=["transitions", "segments", "mixed segments"],
)
def test_minibatches_sampled_together_are_those_sampled_one_by_one(
    sampler_of: Callable[[], Sampler],
) -> None:
    # Most of what is drawn from a full ring of short games is not stored.
    played = Played(MadeUpGames(3, lambda env, game: Game(2 + (env + game) % 5)), capacity=90)
    played.play(200)
    together, alone = sampler_of(), sampler_of()
    for updates in (1, 7, 40):
        drawn = together.sample(played.replay, updates)
        expected = list(one_by_one(alone, played.replay, updates))
        assert np.array_equal(drawn.steps, np.concatenate([each.steps for each in expected]))
        assert np.array_equal(drawn.streams, np.concatenate([each.streams for each in expected]))
        pieces = [(piece.draw.segment, *piece[1:]) for piece in drawn.pieces]
        assert pieces == [
            (piece.draw.segment, *piece[1:]) for each in expected for piece in each.pieces
        ]
        assert same(together.state_dict(), alone.state_dict())


def trained_often(
    sampler: PrioritizedTransitions, played: Played
) -> list[tuple[list[Place], np.ndarray]]:
    """Train until all errors are known; then many draws."""
    known: set[Place] = set()
    while known != set(played.seen):
        known |= {place for drawn, _ in train(sampler, played.replay, 20) for place in drawn}
    return train(sampler, played.replay, 1500)


def test_part_of_a_minibatch_leaves_nothing_of_a_segment_out() -> None:
    played = Played(MadeUpGames(1, games_of([5, 7, 3, 6])), capacity=400)
    played.play(4 + sum([5, 7, 3, 6]))
    stored = [played.replay.segments[index] for index in range(3)]
    backward = [
        step for each in stored for step in reversed(range(each.start, each.start + each.length))
    ]
    draws_in_order(played.replay, stored)
    sampler = SegmentSampler(np.random.default_rng(0), 5, 1, is_part=True)
    for update in range(3):
        trained = sampler.sample(played.replay, 1).steps[0].tolist()
        assert sorted(trained) == sorted(backward[5 * update : 5 * update + 5])


def test_draws_follow_the_priorities() -> None:
    played = Played(MadeUpGames(2, random_games(3, 30)), capacity=400)
    played.play(60)
    counts = counts_of((drawn for drawn, _ in trained_often(prioritized(), played)), played.seen)
    # Transitions of one error are counted together, those of almost none not at all.
    observed: dict[float, int] = {}
    expected: dict[float, float] = {}
    for place, seen in played.seen.items():
        size = priority(float(error_at(torch.from_numpy(seen.state)[None])))
        observed[size] = observed.get(size, 0) + counts[place]
        expected[size] = expected.get(size, 0.0) + size
    scale = sum(counts.values()) / sum(expected.values())
    sizes = [size for size in expected if scale * expected[size] > 20]
    assert len(sizes) > 10
    found = np.array([observed[size] for size in sizes])
    awaited = np.array([scale * expected[size] for size in sizes])
    assert found.sum() == pytest.approx(awaited.sum(), rel=0.01)
    awaited *= found.sum() / awaited.sum()
    assert scipy.stats.chisquare(found, awaited).pvalue > ERROR_RATE


def test_weighted_draws_are_unbiased() -> None:
    """With beta 1 a weighted mean over draws estimates the plain mean over what is stored."""
    played = Played(MadeUpGames(2, random_games(3, 30)), capacity=400)
    played.play(60)
    sampler = prioritized(priorities=priorities_with(0.3, 1.0))
    drawn = trained_often(sampler, played)
    tree, count = leaves(sampler), len(played.replay.transitions)
    quantity = {place: float(place[2] % 5) for place in played.seen}
    means = []
    for minibatch, weights in drawn:
        shares = tree[[leaf_of(played, place) for place in minibatch]] / tree.sum()
        full = 1 / (count * shares)
        assert weights == pytest.approx(full / full.max(), rel=1e-5)
        means.append(np.mean([w * quantity[p] for w, p in zip(full, minibatch, strict=True)]))
    mean = np.mean(list(quantity.values()))
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    # Five standard errors: a correct estimate is further away once in 1.7 million.
    assert abs(np.mean(means) - mean) < 5 * error < 0.25 * mean


def test_weights_by_hand_as_beta_rises() -> None:
    played = Played(MadeUpGames(1, games_of([50])), capacity=100)
    played.play(4)
    sampler = prioritized(batch_size=4, priorities=priorities_with(updates=3))
    for beta in (0.4, 0.6, 0.8, 1.0, 1.0):
        before = leaves(sampler)
        ((drawn, weights),) = train(sampler, played.replay, 1)
        sizes = before[[place[2] - 1 for place in drawn]] if len(before) else np.ones(4)
        expected = sizes**-beta / (sizes**-beta).max()
        assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 40),
    streams=st.integers(1, 3),
    capacity=st.integers(20, 100),
    rounds=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), min_size=3, max_size=12),
)
def test_the_tree_holds_what_can_be_drawn_and_nothing_else(
    seed: int, longest: int, streams: int, capacity: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(streams, random_games(seed, longest)), capacity=capacity, seed=seed)
    replay, sampler = played.replay, prioritized(seed=seed)
    known: dict[Place, float] = {}
    largest, entered = 1.0, 0
    for steps, updates in rounds:
        played.play(steps)
        if not len(replay.transitions) or not updates:
            continue
        largest_then = largest
        for drawn, _ in train(sampler, replay, updates):
            for place in drawn:
                error = float(error_at(torch.from_numpy(played.seen[place].state)[None]))
                known[place] = priority(error)
                largest = max(largest, abs(error) + SMALLEST_PRIORITY)
        expected = np.zeros(replay.transitions.num_places)
        for place, seen in played.seen.items():
            if replay.transitions.is_stored(place[0] - 1, seen.step):
                if seen.step >= entered:
                    known.setdefault(place, largest_then**ALPHA)
                expected[leaf_of(played, place)] = known[place]
        entered = replay.transitions.num_steps - 1
        assert leaves(sampler) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    streams=st.integers(1, 3),
    capacity=st.integers(20, 100),
    rounds=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2)), min_size=2, max_size=6),
)
def test_a_loaded_sampler_fits_its_memory_and_stays_as_it_was(
    seed: int, streams: int, capacity: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(streams, random_games(seed, 20)), capacity=capacity, seed=seed)
    sampler = prioritized(seed=seed)
    for steps, updates in rounds:
        played.play(steps)
        if len(played.replay.transitions):
            train(sampler, played.replay, updates)
        # Perhaps with transitions that no update has drawn from yet.
        loaded = prioritized()
        loaded.load_state_dict(sampler.state_dict())
        loaded.check_loaded(played.replay, ())
        assert same(loaded.state_dict(), sampler.state_dict())


@pytest.mark.parametrize("kind", [PrioritizedTransitions, PrioritizedSegments])
def test_without_anything_stored_there_is_nothing_to_draw(kind: type) -> None:
    replay = empty_replay(capacity=40, num_streams=1, stack=2)
    rng = np.random.default_rng(0)
    sampler = prioritized() if kind is PrioritizedTransitions else segments(rng)
    with pytest.raises(ValueError, match="is stored yet"):
        sampler.sample(replay, 1)


def test_values_that_are_no_numbers_are_an_error() -> None:
    played = Played(MadeUpGames(1, games_of([50])), capacity=100)
    played.play(10)
    sampler = prioritized()
    train(sampler, played.replay, 2)
    before = leaves(sampler)
    minibatch = sampler.sample(played.replay, 1)
    with pytest.raises(EbuError, match="--learning-rate"):
        sampler.update_priorities(played.replay, minibatch, torch.full((8,), torch.nan))
    assert np.array_equal(leaves(sampler), before)


# --- whole segments by priority -------------------------------------------------------------


def segments(
    rng: np.random.Generator,
    batch_size: int = 8,
    mix: int = 1,
    priorities: Priorities | None = None,
) -> PrioritizedSegments:
    return PrioritizedSegments(rng, batch_size, mix, priorities or priorities_with())


def test_a_segments_priority_is_its_mean_absolute_error_when_last_trained_on_whole() -> None:
    played, stored = one_stream(12, 6, 20)
    sampler = segments(np.random.default_rng(0), batch_size=4, priorities=priorities_with(1.0))
    # 12, 6 and 20 in minibatches of 4: the short one of the second is filled from the tail of a
    # draw, which is not the whole.
    wholes = {}
    for number, segment in enumerate(stored, 1):
        states = torch.from_numpy(np.stack([s.state for s in played.transitions(1, number)]))
        wholes[segment.start] = float(error_at(states).abs().mean()) + SMALLEST_PRIORITY
    known = set()
    for _ in range(100):
        train(sampler, played.replay, 1)
        state = sampler.state_dict()
        for start in wholes.keys() & set(state["priority_starts"].tolist()):
            assert state["priorities"][start] == pytest.approx(wholes[start], abs=1e-6)
            known.add(start)
    assert known == wholes.keys()


def test_segments_are_drawn_in_proportion_to_their_priority() -> None:
    played, stored = one_stream(8, 8, 8, 8)
    sampler = segments(np.random.default_rng(0), priorities=priorities_with(1.0))
    wanted = np.array([4.0, 1.0, 2.0, 3.0])
    counts = np.zeros(4)
    for minibatch in one_by_one(sampler, played.replay, 4_000):
        number = [segment.start for segment in stored].index(int(minibatch.steps.min()))
        if sampler.priorities.updates >= 1_000:  # all have been trained on
            counts[number] += 1
        sampler.update_priorities(played.replay, minibatch, torch.full((8,), wanted[number]))
    assert scipy.stats.chisquare(counts, counts.sum() * wanted / 10).pvalue > ERROR_RATE


def test_weights_of_segments_are_relative_to_the_largest_of_all_stored() -> None:
    played, stored = one_stream(8, 8)
    sampler = segments(np.random.default_rng(0), priorities=priorities_with(1.0, 1.0))
    sizes, seen = {stored[0].start: 4.0, stored[1].start: 1.0}, set[int]()
    for minibatch in one_by_one(sampler, played.replay, 60):
        start = int(minibatch.steps.min())
        if len(seen) == 2:
            assert minibatch.weights is not None
            assert minibatch.weights[0] == pytest.approx(np.full(8, 1.0 / sizes[start]), rel=1e-5)
        sampler.update_priorities(played.replay, minibatch, torch.full((8,), -sizes[start]))
        seen.add(start)


def test_a_new_segment_enters_with_the_largest_priority() -> None:
    played = Played(MadeUpGames(1, lambda env, game: Game(8)), capacity=400)
    played.play(9)
    sampler = segments(np.random.default_rng(0), priorities=priorities_with(1.0))
    for minibatch in one_by_one(sampler, played.replay, 1):
        sampler.update_priorities(played.replay, minibatch, torch.full((8,), 3.0))
    for minibatch in one_by_one(sampler, played.replay, 1):
        sampler.update_priorities(played.replay, minibatch, torch.full((8,), 1.0))
    played.play(9)
    starts = [sampler.draw_segment(played.replay)[0].start for _ in range(4_000)]
    counts = [starts.count(0), starts.count(9)]
    assert scipy.stats.chisquare(counts, [1_000, 3_000]).pvalue > ERROR_RATE


def test_a_place_that_is_used_again_has_no_priority_of_its_old_segment() -> None:
    played = Played(MadeUpGames(1, lambda env, game: Game(7)), capacity=40)
    sampler = segments(np.random.default_rng(0), priorities=priorities_with(1.0))
    played.play(30)
    for minibatch in one_by_one(sampler, played.replay, 20):
        sampler.update_priorities(played.replay, minibatch, torch.full((8,), 0.1))
    played.play(80)  # every segment is another one now
    chances = {sampler.draw_segment(played.replay)[1] for _ in range(200)}
    assert chances == {1.0}
