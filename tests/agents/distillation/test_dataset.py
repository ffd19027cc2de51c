"""Sets of states: stacks, episodes held out, targets, joining, and what is on the disk."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.distillation.dataset import (
    ApartSampler,
    Dataset,
    hard_targets,
    hold_out,
    join,
    load_or_make,
    load_states,
    save_states,
)
from ebu.errors import EbuError, UsageError
from tests.made_up import same


def set_of(
    *lengths: int, context: int = 0, stack: int = 3, seed: int = 0, shape: tuple[int, ...] = (2, 2)
) -> Dataset:
    """Episodes of these numbers of states, each after `context` frames; frames count from 1."""
    draw = torch.Generator().manual_seed(seed)
    frames_of = [context + length for length in lengths]
    starts = (np.cumsum(frames_of) - frames_of).tolist()
    newest = [
        row
        for start, length in zip(starts, frames_of, strict=True)
        for row in range(start + context, start + length)
    ]
    count = len(newest)
    numbers = torch.arange(1, sum(frames_of) + 1, dtype=torch.uint8)
    return Dataset(
        frames=numbers.view(-1, *[1] * len(shape)).expand(-1, *shape).contiguous(),
        episodes=torch.tensor(starts),
        held_out_episodes=hold_out(np.array(lengths), np.random.default_rng(seed)),
        newest=torch.tensor(newest),
        outputs=torch.randn(count, 4, generator=draw),
        actions=torch.randint(4, (count,), generator=draw),
        rewards=torch.randn(count, generator=draw),
        terminated=torch.zeros(count, dtype=torch.bool),
        stack=stack,
        sources=({"seed": seed},),
    )


def equal(one: Dataset, other: Dataset) -> bool:
    return all(same(getattr(one, part.name), getattr(other, part.name)) for part in fields(Dataset))


def numbers(states: Dataset, index: int) -> list[int]:
    """The frames of a state by what they hold."""
    pixels: list[int] = states.stacks(torch.tensor([index]))[0, :, 0, 0].tolist()
    return pixels


def test_stacks_by_hand() -> None:
    states = set_of(3, 4)
    assert [numbers(states, index) for index in (0, 1, 2)] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    # The second episode does not look back into the first.
    assert [numbers(states, index) for index in (3, 5, 6)] == [[0, 0, 4], [4, 5, 6], [5, 6, 7]]
    stacks = states.stacks(torch.tensor([6, 0]))
    assert stacks.shape == (2, 3, 2, 2)
    assert stacks.dtype == torch.uint8
    # A part from the middle of a game begins with its context.
    part = set_of(2, 1, context=2)
    assert [numbers(part, index) for index in range(3)] == [[1, 2, 3], [2, 3, 4], [5, 6, 7]]


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=8),
    st.integers(0, 3),
    st.integers(1, 4),
    st.data(),
)
def test_a_stack_is_what_play_showed(
    lengths: list[int], context: int, stack: int, data: st.DataObject
) -> None:
    states = set_of(*lengths, context=context, stack=stack)
    index = data.draw(st.integers(0, len(states) - 1))
    episode = int(states.episode_of(torch.tensor([index])))
    first = int(states.episodes[episode]) + 1
    newest = int(states.newest[index]) + 1
    expected = [n if n >= first else 0 for n in range(newest - stack + 1, newest + 1)]
    assert numbers(states, index) == expected


# --- what is held out -----------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=2, max_size=60), st.integers(0, 5))
def test_whole_episodes_are_held_out(lengths: list[int], seed: int) -> None:
    states = set_of(*lengths, seed=seed)
    train, held_out = states.train, states.held_out
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(states)))
    assert len(train) > 0
    assert len(held_out) > 0
    kept_apart = set(states.episode_of(held_out).tolist())
    assert not kept_apart & set(states.episode_of(train).tolist())


@given(lengths=st.lists(st.integers(1, 100), min_size=2, max_size=60), seed=st.integers(0, 9))
def test_at_least_the_share_of_states_is_held_out_and_no_episode_more(
    lengths: list[int], seed: int
) -> None:
    held_out = hold_out(np.array(lengths), np.random.default_rng(seed), share=0.2)
    states = torch.tensor(lengths)[held_out]
    # The one episode that is left may be too long for the share.
    assert states.sum() >= 0.2 * sum(lengths) or int((~held_out).sum()) == 1
    assert states.sum() - states.max() < 0.2 * sum(lengths)


def test_one_episode_cannot_be_split() -> None:
    with pytest.raises(EbuError, match="collect more"):
        hold_out(np.ones(1), np.random.default_rng(0))


def test_draws_apart_visit_every_episode_before_one_comes_again() -> None:
    states = set_of(1, 40, 2, 7, 5, 9)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        drawn = ApartSampler(states).draw(5, rng)
        episodes = states.episode_of(drawn).tolist()
        assert len(set(episodes)) == 5
        assert not set(drawn.tolist()) & set(states.held_out.tolist())
        seen |= set(drawn.tolist())
    # A state of the longest episode is missed with probability 0.975^100 = 0.08, so some are.
    assert len(seen) > len(states.train) / 2
    many = states.episode_of(ApartSampler(states).draw(12, rng)).bincount(minlength=6)
    assert sorted(many.tolist()) == [0, 2, 2, 2, 3, 3]


# --- labels and targets ---------------------------------------------------------------------


def targets_by_hand(states: Dataset, start: int, end: int, beta: float) -> list[float]:
    """Algorithm 2 for states start to end − 1, as a recursion in plain numbers."""
    outputs, actions = states.outputs.double().tolist(), states.actions.tolist()
    rewards = states.rewards.double().clamp(-1, 1).tolist()
    targets: list[float] = []
    for k in reversed(range(start, end)):
        if k == end - 1:
            y = rewards[k] if states.terminated[k] else rewards[k] + 0.9 * max(outputs[k + 1])
        else:
            values = list(outputs[k + 1])
            taken = actions[k + 1]
            values[taken] = beta * targets[0] + (1 - beta) * values[taken]
            y = rewards[k] + 0.9 * max(values)
        targets.insert(0, y)
    return targets


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_hard_targets_go_back_from_where_the_value_ends(beta: float) -> None:
    # A game that ends; one in which a life is lost in the middle and that breaks off; one state.
    states = set_of(4, 6, 1)
    states.terminated[3] = states.terminated[6] = True
    targets = hard_targets(states, gamma=0.9, beta=beta, clip_rewards=True)
    expected = [
        *targets_by_hand(states, 0, 4, beta),
        *targets_by_hand(states, 4, 7, beta),
        *targets_by_hand(states, 7, 9, beta),
    ]
    torch.testing.assert_close(targets[:9], torch.tensor(expected))
    assert targets[9:].isnan().all()
    # At the very end it is the reward.
    states.terminated[:] = True
    raw = hard_targets(states, gamma=0.9, beta=beta, clip_rewards=False)
    assert torch.equal(raw, states.rewards)


# --- joining --------------------------------------------------------------------------------


def test_joined_sets_are_one_after_the_other() -> None:
    one, other = set_of(3, 2, seed=1), set_of(2, 5, 1, context=2, seed=2)
    joined = join([one, other])
    assert len(joined) == len(one) + len(other)
    indices = torch.arange(len(one))
    assert torch.equal(joined.stacks(indices), one.stacks(indices))
    indices = torch.arange(len(other))
    assert torch.equal(joined.stacks(indices + len(one)), other.stacks(indices))
    held_out = [*one.held_out.tolist(), *(other.held_out + len(one)).tolist()]
    assert joined.held_out.tolist() == held_out
    assert torch.equal(joined.outputs, torch.cat([one.outputs, other.outputs]))
    assert joined.sources == ({"seed": 1}, {"seed": 2})
    for wrong in (set_of(3, 2, stack=4), set_of(3, 2, shape=(3, 2))):
        with pytest.raises(EbuError, match="different environments"):
            join([one, wrong])


# --- on the disk ----------------------------------------------------------------------------


def test_a_saved_set_comes_back_as_it_was(tmp_path: Path) -> None:
    states = set_of(30, 2, 5, context=1)
    save_states(tmp_path / "states", states)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert equal(load_states(tmp_path / "states"), states)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    save_states(tmp_path / "states", set_of(3, 4))
    assert len(load_states(tmp_path / "states")) == 7


def test_any_damage_is_one_clear_line(tmp_path: Path) -> None:
    save_states(tmp_path / "states", set_of(30, 2))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 5
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (flipped, content[:middle], b"", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(EbuError, match="put back a copy") as failure:
                load_states(tmp_path / "states")
            assert not isinstance(failure.value, UsageError)
            assert "\n" not in str(failure.value)
            path.write_bytes(content)
    assert len(load_states(tmp_path / "states")) == 32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_fits_in_memory_is_read(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = set_of(3, 4)
    states = replace(states, frames=states.frames.to(dtype))
    save_states(tmp_path / "states", states)
    free = states.frames.nbytes
    monkeypatch.setattr("agents.distillation.dataset.available_bytes", lambda device: free)
    assert equal(load_states(tmp_path / "states"), states)
    free -= 1
    with pytest.raises(EbuError, match="do not fit in memory"):
        load_states(tmp_path / "states")


def test_what_was_saved_is_not_made_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Dataset:
        made.append(1)
        return set_of(3, 4)

    source = {"seed": 3, "epsilon": 0.05, "shape": (2, 2)}
    first = load_or_make(tmp_path / "round", source, make)
    again = load_or_make(tmp_path / "round", source, make)
    assert made == [1]
    assert equal(first, again)
    assert first.sources == ({"seed": 3, "epsilon": 0.05, "shape": [2, 2]},)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UsageError, match="holds files that are no states"):
        load_or_make(tmp_path, source, make)
    with pytest.raises(UsageError, match="holds no states"):
        load_states(tmp_path)
    with pytest.raises(UsageError, match=r"epsilon was 0\.05, is 0\.1; games was None, is 2"):
        load_or_make(tmp_path / "round", {**source, "epsilon": 0.1, "games": 2}, make)
