"""Sources of states: play, replay memories, synthetic frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation.collect import collect, from_replay
from agents.distillation.dataset import Dataset
from agents.distillation.experimental.synthetic import RUN, SHIFT, mixed, noise, shift
from ebu.errors import EbuError
from ebu.run.checkpoint import save_checkpoint
from tests.agents.distillation.test_dataset import equal, set_of
from tests.made_up import (
    NUM_ACTIONS,
    Game,
    MadeUpGames,
    Place,
    Played,
    games_of,
    places,
    random_games,
    reward_of,
    table_values,
)
from tests.made_up_runs import open_trainers, real_run


@pytest.fixture(autouse=True)
def closed_trainers() -> Iterator[None]:
    yield
    while open_trainers:
        open_trainers.pop().close()


def collected(env: MadeUpGames, count: int, *, seed: int = 0, **options: Any) -> Dataset:
    states = collect(env, table_values, count=count, rng=np.random.default_rng(seed), **options)
    assert states is not None
    return states


def every_stack(states: Dataset) -> Tensor:
    return states.stacks(torch.arange(len(states)))


def places_of(states: Dataset) -> list[Place]:
    return places(every_stack(states))


# --- play -----------------------------------------------------------------------------------


def test_states_are_those_in_which_an_action_is_chosen_in_whole_games(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.distillation.collect.FEWEST_PARTS", 1)
    # Of a game of three steps the last frame is no state. When nine states have been seen both
    # environments are in a game, and those are played to their ends.
    for count in (9, 12):
        env = MadeUpGames(2, games_of([3], [6]))
        states = collected(env, count, epsilon=0.0)
        games = [(1, 1, 3), (1, 2, 3), (2, 1, 6)]
        every = [(env_, game, step) for env_, game, end in games for step in range(1, end + 1)]
        assert set(places_of(states)) <= set(every)
        assert len(states) == len(states.frames) == count
    assert places_of(states) == every
    assert states.episodes.tolist() == [0, 3, 6]
    assert states.terminated.nonzero().flatten().tolist() == [2, 5, 11]


def test_what_is_kept_of_long_games_is_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.distillation.collect.PART", 8)
    # Half of the states have been seen when no game may begin any more.
    states = collected(MadeUpGames(4, games_of([300])), 600)
    assert len(states) == 600
    where = np.array(places_of(states))
    assert len({tuple(place) for place in where.tolist()}) == 600
    assert where[:, 1].max() == 1
    # Of 75 parts of 8 states half are late: 0.5 with a standard error of 0.06; five of them.
    assert abs((where[:, 2] > 150).mean() - 0.5) < 0.29
    # Every state is whole, although what precedes a part was left out.
    for stack in every_stack(states):
        env_, game, step = stack[-1].int().tolist()
        shown = [[env_, game, step - age] if step > age else [0, 0, 0] for age in (2, 1, 0)]
        assert stack.int().tolist() == shown
    # Parts that follow each other share frames; others have at most two frames of context.
    assert len(states) < len(states.frames) <= 600 + 2 * 76
    # A game is held out with all of its parts.
    held_out = states.held_out_episodes[states.episode_of(torch.arange(600))].numpy()
    for game in range(1, 5):
        assert len(set(held_out[where[:, 0] == game].tolist())) == 1
    assert {True, False} == set(held_out.tolist())


def test_few_states_are_of_several_games() -> None:
    states = collected(MadeUpGames(4, games_of([100])), 32)
    assert len(states) == 32
    assert len({(env_, game) for env_, game, _ in places_of(states)}) > 1


def test_stacks_labels_and_rewards_are_those_of_play() -> None:
    env = MadeUpGames(3, random_games(0, 12))
    states = collected(env, 200, epsilon=0.3)
    stacks = every_stack(states)
    assert torch.equal(states.outputs, table_values(stacks))
    for stack in stacks:
        env_, game, step = stack[-1].int().tolist()
        shown = [[env_, game, step - age] if step > age else [0, 0, 0] for age in (2, 1, 0)]
        assert stack.int().tolist() == shown
    # An action's reward is that of the step that follows it.
    for (where, game, step), action, reward in zip(
        places_of(states), states.actions.tolist(), states.rewards.tolist(), strict=True
    ):
        assert reward == reward_of(where - 1, game - 1, step, action)


def test_who_acts_and_how_often_at_random() -> None:
    def act(stacks: Tensor, **given: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(given)
        return np.full(len(stacks), 2), np.ones(len(stacks), dtype=np.float32)

    asked: list[dict[str, Any]] = []
    env = MadeUpGames(2, games_of([30]))
    by_student = collected(env, 40, act=act, epsilon=0.25, random_start_actions=3)
    assert set(by_student.actions.tolist()) == {2}
    # Whoever acts, the labels are the teacher's.
    assert torch.equal(by_student.outputs, table_values(every_stack(by_student)))
    assert {given["epsilon"] for given in asked} == {0.25}
    assert [given["forced_random"].tolist() for given in asked] == [[n < 3] * 2 for n in range(31)]

    seen: list[int] = []
    greedy = collected(env, 1000, epsilon=0.0, progress=seen.append)
    assert (seen[:2], seen[-1]) == ([2, 4], 1000)
    assert torch.equal(greedy.actions, greedy.outputs.argmax(dim=1))
    exploring = collected(env, 1000, epsilon=0.3)
    other = (exploring.actions != exploring.outputs.argmax(dim=1)).float().mean().item()
    # ε (1 − 1/A) = 0.2 with a standard error of 0.0127; five of them.
    assert abs(other - 0.2) < 0.064
    rng = np.random.default_rng(0)
    assert collect(env, table_values, count=10, rng=rng, should_stop=lambda: True) is None


def test_lost_lives_end_the_value_and_no_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.distillation.collect.FEWEST_PARTS", 1)

    def games() -> MadeUpGames:
        return MadeUpGames(2, games_of([Game(6, life_losses=(2,)), Game(4, truncated=True)]))

    ends = [
        collected(games(), 20, life_loss_ends_value=ends_value).terminated
        for ends_value in (False, True)
    ]
    assert ends[0].nonzero().flatten().tolist() == [5, 15]
    assert ends[1].nonzero().flatten().tolist() == [1, 5, 11, 15]
    assert collected(games(), 20).episodes.tolist() == [0, 6, 10, 16]


# --- replay memories ------------------------------------------------------------------------


def run_with(replay: Any, run_dir: Path) -> Path:
    save_checkpoint(
        run_dir / "checkpoints",
        "frames-1",
        {"replay": replay.state_dict()},
        writers=[replay.write_frames],
    )
    return run_dir


@pytest.mark.parametrize(("steps", "stack"), [(25, 3), (400, 1), (400, 3)])
def test_a_replay_memory_gives_all_states_it_holds(tmp_path: Path, steps: int, stack: int) -> None:
    played = Played(MadeUpGames(2, random_games(3, 15), stack=stack), capacity=200)
    played.play(steps)
    oldest = played.count - played.replay.ring_length
    run_dir = run_with(played.replay, tmp_path / "run")
    states = from_replay(
        run_dir, table_values, num_actions=NUM_ACTIONS, rng=np.random.default_rng(0)
    )
    stacks, where = every_stack(states), places_of(states)
    held = {
        place
        for place, seen in played.seen.items()
        if seen.step - int((seen.state[:-1, 0] > 0).sum()) >= oldest
    }
    assert len(where) == len(set(where)) == len(held)
    assert set(where) == held
    assert torch.equal(states.outputs, table_values(stacks))
    for index, place in enumerate(where):
        seen = played.seen[place]
        assert torch.equal(stacks[index], torch.from_numpy(seen.state))
        assert states.actions[index] == seen.action
        assert states.rewards[index] == seen.reward
        assert states.terminated[index] == seen.terminated
    # Each frame once; an episode is one game.
    assert len({tuple(frame) for frame in states.frames.tolist()}) == len(states.frames)
    episodes = states.episode_of(torch.arange(len(states))).tolist()
    games = [place[:2] for place in where]
    assert len({*games}) == len({*zip(episodes, games, strict=True)}) == len(states.episodes)


def test_a_number_of_states_is_taken_game_by_game(tmp_path: Path) -> None:
    played = Played(MadeUpGames(2, random_games(3, 15)), capacity=1000)
    played.play(300)
    run_dir = run_with(played.replay, tmp_path / "run")
    some, again, other = (
        from_replay(
            run_dir,
            table_values,
            num_actions=NUM_ACTIONS,
            rng=np.random.default_rng(seed),
            count=100,
        )
        for seed in (0, 0, 1)
    )
    assert len(some) == 100
    assert equal(some, again)
    assert not torch.equal(some.frames, other.frames)


def test_a_trained_run_is_read_and_left_alone(tmp_path: Path) -> None:
    trainer = real_run(tmp_path / "run", "ebu")
    trainer.run(200)
    draft = tmp_path / "run" / "checkpoints" / ".frames-9.1.tmp"
    draft.mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    states = from_replay(
        tmp_path / "run", table_values, num_actions=NUM_ACTIONS, rng=np.random.default_rng(0)
    )
    assert len(states) == len(trainer.replay.transitions)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_without_a_replay_memory_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "student" / "checkpoints", "frames-1", {"frames": 1})
    for run_dir in (tmp_path / "absent", tmp_path / "student"):
        with pytest.raises(EbuError, match="no replay memory"):
            from_replay(
                run_dir, table_values, num_actions=NUM_ACTIONS, rng=np.random.default_rng(0)
            )


# --- synthetic states -----------------------------------------------------------------------


def mean_pixels(stacks: Tensor) -> Tensor:
    return stacks.float().mean(dim=(2, 3))


def test_noise_is_uniform_and_labelled() -> None:
    rng = np.random.default_rng(0)
    states = noise(100, frame_shape=(20, 20), stack=3, label=mean_pixels, rng=rng)
    assert len(states) == 100
    assert len(states.episodes) == -(-100 // RUN)
    stacks = every_stack(states)
    # Context is full everywhere: no state begins a game.
    assert stacks.flatten(2).float().std(dim=2).min() > 50
    # 106 × 400 pixels of deviation 74: the mean is known to 0.36.
    assert abs(states.frames.float().mean().item() - 127.5) < 2
    assert torch.equal(states.outputs, mean_pixels(stacks))


def two_colours(first: int, second: int) -> Dataset:
    """Two episodes to train on, one held out, each of one colour; the held-out one is black."""
    states = set_of(40, 40, 40, shape=(6, 6))
    colours = iter((first, second))
    for episode in range(3):
        rows = slice(40 * episode, 40 * episode + 40)
        states.frames[rows] = 0 if states.held_out_episodes[episode] else next(colours)
    return states


def test_convex_mixtures_lie_between_two_states_to_train_on() -> None:
    rng = np.random.default_rng(0)
    states = mixed(two_colours(100, 200), 600, how="convex", label=mean_pixels, rng=rng)
    assert len(states) == 600
    newest = every_stack(states)[:, -1].flatten(1)
    assert (newest == newest[:, :1]).all()
    colours = newest[:, 0]
    assert colours.min() >= 100
    assert colours.max() <= 200
    assert len(colours.unique()) > 10
    assert torch.equal(states.outputs, mean_pixels(every_stack(states)))


def test_cut_mixtures_paste_one_rectangle_for_a_whole_stretch() -> None:
    rng = np.random.default_rng(1)
    states = mixed(two_colours(100, 200), 600, how="cut", label=mean_pixels, rng=rng)
    assert set(states.frames.unique().tolist()) <= {0, 100, 200}
    newest = every_stack(states)[:, -1]
    whole, pasted = (newest == 100).all(dim=(1, 2)), (newest == 200).all(dim=(1, 2))
    assert (~(whole | pasted)).any()
    every = torch.arange(len(states))
    episodes = states.episode_of(every)
    for episode in episodes.unique():
        assert (newest[episodes == episode] == newest[episodes == episode][0]).all()


def test_shifted_states_move_as_one_by_a_few_pixels() -> None:
    row, column = torch.arange(20)[:, None], torch.arange(20)[None]
    image = (10 * row + column).to(torch.uint8)
    stacks = torch.stack([image, image + 1]).expand(300, 2, 20, 20)
    moved = shift(stacks, np.random.default_rng(0))
    assert moved.shape == stacks.shape
    assert moved.dtype == torch.uint8
    assert torch.equal(moved[:, 1], moved[:, 0] + 1)
    moves = set()
    for state in moved[:, 0].int():
        # Pixel (10, 10) shows what was at (10 − down, 10 − right).
        down, right = divmod(110 - int(state[10, 10]) + 11 * SHIFT, 10)
        down, right = down - SHIFT, right - SHIFT
        expected = image.int()[(row - down).clamp(0, 19), (column - right).clamp(0, 19)]
        assert torch.equal(state, expected)
        moves.add((down, right))
    # Each of 81 moves is missed by 300 draws with probability 0.024.
    assert len(moves) > 65
    assert max(max(map(abs, move)) for move in moves) == SHIFT
