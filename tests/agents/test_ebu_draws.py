"""Draws in progress: saved and restored, and let go when their frames are overwritten."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import Ebu
from ebu.segments import Segment
from tests.made_up import (
    Game,
    MadeUpGames,
    Played,
    TableLearner,
    draws_in_order,
    ebu_of,
    empty_replay,
    one_step_target,
    one_stream,
    places,
    random_games,
    rows,
    same,
    through_disk,
    trained,
)


@pytest.mark.parametrize("mix", [1, 4])
@pytest.mark.parametrize("replay_too", [False, True], ids=["same replay", "replay restored"])
@pytest.mark.parametrize("updates_before", [0, 1, 2, 3, 4])
def test_a_restored_agent_goes_on_in_the_middle_of_a_segment(
    tmp_path: Path, mix: int, replay_too: bool, updates_before: int
) -> None:
    played, _ = one_stream(100, 16, 75, 16)
    replay = played.replay
    learner, other = TableLearner(), TableLearner()
    agent = ebu_of(learner, seed=0, mix_segments=mix)
    agent.learn(replay, updates_before)

    restored = ebu_of(other, seed=1, mix_segments=mix)
    restored.load_state_dict(through_disk(agent.state_dict(), tmp_path / "agent"))
    replay_of_restored = replay
    if replay_too:
        replay_of_restored = empty_replay(replay.capacity, 1, replay.stack)
        replay_of_restored.load_state_dict(through_disk(replay.state_dict(), tmp_path / "replay"))
        replay.write_frames(tmp_path)
        replay_of_restored.read_frames(tmp_path)

    # Targets that were recomputed would be others.
    learner.salt = other.salt = 1
    agent.learn(replay, 12)
    restored.learn(replay_of_restored, 12)
    for one, two in zip(learner.updates[updates_before:], other.updates, strict=True):
        assert all(map(torch.equal, one, two))
    assert same(agent.state_dict(), restored.state_dict())
    assert agent.metrics() == restored.metrics()


RING = 256  # Segments are cut at a quarter of it: 64 steps.


def half_trained_segment() -> tuple[Played, TableLearner, Ebu]:
    """A long game, and the second half of its first segment trained."""
    played = Played(MadeUpGames(1, lambda env, game: Game(10_000)), capacity=RING)
    played.play(200)
    learner = TableLearner()
    agent = ebu_of(learner)
    draws_in_order(played.replay, [Segment(0, 0, 64, False), Segment(0, 192, 64, False)])
    assert trained(learner, agent, played.replay, 1) == [rows(1, 33, 64)]
    return played, learner, agent


def test_a_draw_whose_frames_are_all_there_goes_on() -> None:
    played, learner, agent = half_trained_segment()
    played.play(RING - played.count)  # The ring is full, the first frame not yet overwritten.
    assert trained(learner, agent, played.replay, 1) == [rows(1, 1, 32)]
    assert agent.metrics()["replay/forfeited_draws"] == 0


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


def drive(
    play: Callable[[int, int], Game],
    rounds: Iterable[tuple[int, int]],
    seed: int,
    **config: Any,
) -> Ebu:
    """Play and learn in turns on a small ring; check each minibatch against what was seen."""
    played = Played(MadeUpGames(2, play), capacity=160, seed=seed)
    learner = TableLearner()
    agent = ebu_of(learner, seed, **config)
    for steps, updates in rounds:
        played.play(steps)
        for _ in range(updates if played.replay.num_segments else 0):
            agent.learn_once(played.replay)
            (update,) = learner.updates
            played.check(update)
            if agent.config.beta == 0:
                for place, target in zip(
                    places(update.states), update.targets.tolist(), strict=True
                ):
                    assert target == one_step_target(played.seen[place])
            learner.updates.clear()
    return agent


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 60),
    rounds=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 6)), min_size=5, max_size=20),
    batch_size=st.sampled_from([4, 8, 32]),
    mix=st.sampled_from([1, 2, 4]),
)
def test_nothing_overwritten_is_trained_on(
    seed: int, longest: int, rounds: list[tuple[int, int]], batch_size: int, mix: int
) -> None:
    drive(
        random_games(seed, longest),
        rounds,
        seed,
        beta=0.0,
        batch_size=batch_size,
        mix_segments=mix,
    )


@pytest.mark.parametrize("mix", [1, 4])
def test_a_ring_driven_hard_makes_draws_forfeit_and_never_train_on_what_is_gone(mix: int) -> None:
    rounds = [(7, 1)] * 300
    agent = drive(random_games(3, 40), rounds, 3, beta=0.0, batch_size=4, mix_segments=mix)
    assert agent.metrics()["replay/forfeited_draws"] > 10
