"""The loop: what it counts, when it learns, what it stores, logs and evaluates."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest
from ebu.run.logs import Monitor
from ebu.schedules import ExplorationConfig, epsilon_at, evaluation_schedule
from ebu.segments import Segment
from tests.made_up import Game, MadeUpGames, games_of, random_games, same
from tests.made_up_runs import STEP_FRAMES, Onlooker, lines, real_run, trainer_in

pytestmark = pytest.mark.usefixtures("closing")


def played_steps(env: MadeUpGames, rows: int | None = None) -> int:
    """Agent steps in the first rows an environment has given; a game's first frame is none."""
    return sum(int((~row.started).sum()) for row in env.rows[:rows])


# --- when it learns -------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 4, 64])
@pytest.mark.parametrize("rate", [0.25, 1.0, 0.1, 2.5])
def test_updates_are_a_share_of_the_agent_steps_since_learning_starts(
    tmp_path: Path, num_envs: int, rate: float
) -> None:
    env, agent, learning_starts = MadeUpGames(num_envs, random_games(1, 12)), Onlooker(), 301
    trainer = trainer_in(
        tmp_path, env, agent, updates_per_step=rate, learning_starts=learning_starts
    )
    trainer.run(STEP_FRAMES * (learning_starts + 40 * num_envs + 60))
    done = 0
    for step, updates in enumerate(agent.updates, 1):
        done += updates
        # The learner works while the row after these is on its way.
        learning_steps = max(0, played_steps(env, step) - learning_starts)
        assert done == math.floor(Fraction(str(rate)) * learning_steps)
    assert trainer.updates == done > 0


@pytest.mark.parametrize("needs_segments", [False, True])
@pytest.mark.parametrize("num_envs", [1, 8, 64])
@pytest.mark.parametrize("learning_starts", [0, 30, 65, 127, 1000])
def test_learning_starts_in_games_without_an_end(
    tmp_path: Path, needs_segments: bool, num_envs: int, learning_starts: int
) -> None:
    env, agent = MadeUpGames(num_envs, games_of([10**6])), Onlooker(needs_segments=needs_segments)
    trainer = trainer_in(tmp_path, env, agent, learning_starts=learning_starts)
    trainer.run(STEP_FRAMES * (2 * learning_starts + 6 * num_envs))
    first = next(index for index, updates in enumerate(agent.updates) if updates)
    steps = played_steps(env, first + 1)
    assert learning_starts < steps <= 2 * max(learning_starts, num_envs)
    assert played_steps(env, first) <= learning_starts + 2 * num_envs
    # Epsilon falls with the updates, not before.
    assert set(agent.epsilons[:first]) == {1.0}
    assert agent.epsilons[-1] < 1.0


def test_stored_segments_hold_a_quarter_of_the_memory_at_least(tmp_path: Path) -> None:
    env = MadeUpGames(2, games_of([10**6]))
    trainer = trainer_in(tmp_path, env, Onlooker(needs_segments=True), learning_starts=20)
    replay = trainer.replay
    for steps in range(24, 700, 9):
        trainer.run(STEP_FRAMES * steps)
        assert 4 * (replay.segments.transitions() + env.num_envs) >= len(replay.transitions)
    segments = stored_segments(replay)
    assert not any(segment.terminated for segment in segments)
    # The younger, the longer: few cuts, however long the game.
    assert len(segments) <= env.num_envs * 6


@pytest.mark.parametrize("needs_segments", [False, True])
def test_games_that_end_in_time_are_not_cut(tmp_path: Path, needs_segments: bool) -> None:
    env = MadeUpGames(2, games_of([15], [11]))
    trainer = trainer_in(tmp_path, env, Onlooker(needs_segments=needs_segments), learning_starts=60)
    trainer.run(STEP_FRAMES * 700)
    assert {segment.length for segment in stored_segments(trainer.replay)} == {15, 11}


def stored_segments(replay: EpisodicReplay) -> list[Segment]:
    return [replay.segments[index] for index in range(len(replay.segments))]


# --- what it counts -------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3])
def test_frames_are_those_played_a_games_first_frame_is_none(tmp_path: Path, num_envs: int) -> None:
    env = MadeUpGames(num_envs, games_of([3], [1], [5, 2]))
    trainer = trainer_in(tmp_path, env, Onlooker(), learning_starts=10**9)
    for until in (4, 20, 21, 200, 777):
        assert trainer.run(until)
        assert trainer.agent_steps == played_steps(env)
        assert trainer.frames == STEP_FRAMES * played_steps(env)
        assert until <= trainer.frames < until + STEP_FRAMES * num_envs
    assert trainer.updates == 0


def test_returns_are_raw_and_clipped_and_lengths_are_frames(tmp_path: Path) -> None:
    env = MadeUpGames(2, games_of([Game(3), Game(4, truncated=True)], [Game(5, life_losses=(2,))]))
    trainer = trainer_in(tmp_path, env, Onlooker(), log_every_frames=40)
    trainer.run(STEP_FRAMES * 60)
    rewards = np.stack([row.rewards for row in env.rows]).astype(float)
    ends = np.stack([row.terminated | row.truncated for row in env.rows])
    begin, games = [0, 0], []
    for row in range(len(rewards)):
        for j in np.flatnonzero(ends[row]):
            one = rewards[begin[j] : row + 1, j]
            at = STEP_FRAMES * played_steps(env, row + 1)
            games.append((at, one.sum(), one.clip(-1, 1).sum(), STEP_FRAMES * (len(one) - 1)))
            begin[j] = row + 1
    before = 0
    for line in lines(tmp_path):
        ended = [game[1:] for game in games if before < game[0] <= line["frames"]]
        before = line["frames"]
        assert line["train/games"] == len(ended)
        returns, clipped, lengths = np.mean(ended, axis=0)
        assert line["train/episode_return"] == pytest.approx(returns)
        assert line["train/episode_return_clipped"] == pytest.approx(clipped)
        assert line["train/episode_length_frames"] == pytest.approx(lengths)
        recent = [game[1] for game in games if game[0] <= line["frames"]][-100:]
        assert line["train/return_last_100_games"] == pytest.approx(np.mean(recent))
    assert len(lines(tmp_path)) == 6
    assert {game[3] for game in games} == {12, 16, 20}


@pytest.mark.parametrize("num_envs", [1, 7, 64])
@pytest.mark.parametrize("every", [4, 30, 100, 1000])
def test_a_line_for_each_interval_and_none_twice(tmp_path: Path, num_envs: int, every: int) -> None:
    env = MadeUpGames(num_envs, random_games(0, 5))
    trainer = trainer_in(tmp_path, env, Onlooker(), log_every_frames=every)
    for until in (2000, 2004, 4000):
        trainer.run(until)
    played = np.cumsum([int((~row.started).sum()) for row in env.rows])
    reached = np.unique(STEP_FRAMES * played)
    points = np.union1d(np.arange(every, reached[-1] + 1, every), [1000, 2000])
    due = reached[np.searchsorted(reached, points[points <= reached[-1]])]
    assert [line["frames"] for line in lines(tmp_path)] == np.unique(due).tolist()


# --- what it stores and shows ---------------------------------------------------------------


@pytest.mark.parametrize(("asked", "lengths"), [(True, [4, 3, 5]), (False, [12])])
def test_lost_lives_end_segments_only_when_asked(
    tmp_path: Path, asked: bool, lengths: list[int]
) -> None:
    env = MadeUpGames(1, lambda env, game: Game(12, life_losses=(4, 7)))
    trainer = trainer_in(tmp_path, env, Onlooker(), life_loss_ends_segment=asked)
    trainer.run(STEP_FRAMES * 12)
    assert len(trainer.replay.segments) == len(lengths)
    steps = np.arange(12)
    terminated = trainer.replay.read(steps, np.zeros_like(steps)).terminated
    assert (torch.nonzero(terminated)[:, 0] + 1).tolist() == np.cumsum(lengths).tolist()
    assert trainer.log.games.metrics(STEP_FRAMES)["train/games"] == 1


def test_a_game_cut_in_the_step_that_loses_a_life_ends_terminated(tmp_path: Path) -> None:
    class Cut(MadeUpGames):
        def recv(self) -> Any:
            row = super().recv()
            return row._replace(life_lost=row.life_lost | row.truncated)

    for asked in (True, False):
        env = Cut(1, games_of([Game(5, truncated=True)]))
        trainer = trainer_in(tmp_path / str(asked), env, Onlooker(), life_loss_ends_segment=asked)
        trainer.run(STEP_FRAMES * 5)
        segment = trainer.replay.segments.draw(np.random.default_rng(0))
        assert segment.length == 5
        assert segment.terminated == asked


@pytest.mark.parametrize("stop_at", [None, 30])
def test_the_replay_memory_holds_what_the_agent_saw_when_it_acted(
    tmp_path: Path, stop_at: int | None
) -> None:
    agent = Onlooker()
    trainer = trainer_in(tmp_path, MadeUpGames(3, random_games(2, 20)), agent, capacity=150)
    if stop_at is not None:
        trainer.run(STEP_FRAMES * 3 * stop_at)
        trainer.close()
        env = MadeUpGames(3, random_games(2, 20))
        trainer = trainer_in(tmp_path, env, agent, capacity=150, resume=True)
    trainer.run(STEP_FRAMES * 3 * 70)
    replay, stored = trainer.replay, 0
    for step in range(replay.transitions.num_steps):
        for stream in range(3):
            if replay.transitions.is_stored(stream, step):
                stored_one = replay.read(np.array([step]), np.array([stream]))
                assert torch.equal(stored_one.states[0], agent.stacks[step][stream])
                assert int(stored_one.actions) == agent.actions[step][stream]
                assert float(stored_one.probabilities) == agent.probabilities[step][stream]
                stored += 1
    assert stored > 100
    assert replay.transitions.num_steps == len(agent.stacks) + 1 > replay.ring_length


def test_the_first_actions_of_every_game_are_random_and_epsilon_follows_its_schedule(
    tmp_path: Path,
) -> None:
    env, agent = MadeUpGames(2, games_of([7, 3], [5])), Onlooker()
    exploration = ExplorationConfig(
        epsilon_end=0.25, epsilon_decay_steps=50, random_start_actions=4
    )
    trainer_in(tmp_path, env, agent, exploration=exploration, learning_starts=30).run(600)
    step_in_game = np.zeros(2, dtype=int)
    acts = zip(env.rows[:-1], agent.forced, agent.epsilons, strict=True)
    for number, (row, forced, epsilon) in enumerate(acts, 1):
        step_in_game = np.where(row.started, 0, step_in_game + 1)
        over = row.terminated | row.truncated
        # What is sent after a game's end is ignored.
        assert np.array_equal(forced[~over], step_in_game[~over] < 4)
        assert epsilon == epsilon_at(exploration, max(0, played_steps(env, number) - 30))
    assert agent.epsilons[0] == 1.0
    assert agent.epsilons[-1] == 0.25


# --- evaluations ----------------------------------------------------------------------------


class Judge:
    """Gives one mean after the other, and counts how often it was asked at which frames."""

    def __init__(self, *means: float) -> None:
        self.means = iter(means)
        self.asked: list[int] = []

    def __call__(self, frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        self.asked.append(frames)
        return None if should_stop() else {"games": 2, "mean": next(self.means)}


def test_evaluations_come_at_their_interval(tmp_path: Path) -> None:
    judge = Judge(*range(20))
    env = MadeUpGames(3, games_of([100_000]))
    trainer = trainer_in(tmp_path, env, Onlooker(), evaluate=judge, eval_every_frames=100)
    trainer.run(450)
    assert judge.asked == [108, 204, 300, 408]
    trainer.run(500)
    assert judge.asked == [108, 204, 300, 408, 504]
    records = lines(tmp_path, "evaluations.jsonl")
    assert [record["frames"] for record in records] == judge.asked
    assert [record["mean"] for record in records] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("every", "points"),
    [
        (None, [*range(100_000, 1_000_001, 100_000), 2_000_000, 3_000_000]),
        (250_000, [*range(250_000, 3_000_001, 250_000)]),
        (0, []),
    ],
)
@pytest.mark.parametrize("stride", [4, 256, 30_000])
def test_evaluations_come_at_fixed_frame_counts(
    every: int | None, points: list[int], stride: int
) -> None:
    schedule, found = evaluation_schedule(every), []
    for frames in range(0, 3_000_000 + stride, stride):
        if schedule.due(frames):
            found.append(frames)
            schedule.done(frames)
    assert found == [-(-point // stride) * stride for point in points]


def test_the_end_of_a_run_is_logged_and_evaluated_and_cut_off_when_it_is_resumed(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"eval_every_frames": 400, "evaluate": Judge(1, 9, 2, 3)}
    grown = real_run(tmp_path / "grown", "ebu", **options)
    assert grown.run(650)
    assert grown.finish()
    ends = [
        [line["frames"] for line in lines(tmp_path / "grown", log)]
        for log in ("metrics.jsonl", "evaluations.jsonl")
    ]
    assert ends[0][-1] == ends[1][-1] == grown.frames
    assert len(ends[1]) == 2
    # The evaluation of the end scored higher, and is not the best of the run.
    best = load_latest(tmp_path / "grown" / "best", state_only=True)
    assert best is not None
    assert best.state["frames"] < grown.frames
    grown.close()

    grown = real_run(tmp_path / "grown", "ebu", resume=True, **options)
    straight = real_run(
        tmp_path / "straight", "ebu", eval_every_frames=400, evaluate=Judge(1, 2, 3)
    )
    for trainer in (grown, straight):
        assert trainer.run(1000)
        assert trainer.finish()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert lines(tmp_path / "grown", log) == lines(tmp_path / "straight", log)
    assert same(grown.state_dict(), straight.state_dict())


def test_a_run_that_lacks_its_last_line_alone_has_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(Monitor, "draw", lambda _, frames, curves: drawn.extend(curves))
    trainer = real_run(tmp_path, "dqn")
    assert trainer.run(450)
    trainer.close()
    drawn.clear()
    again = real_run(tmp_path, "dqn", resume=True)
    assert again.finish()
    assert lines(tmp_path)[-1]["frames"] == again.frames
    assert drawn == []


def test_a_run_stopped_in_its_evaluation_of_the_end_is_not_finished(tmp_path: Path) -> None:
    def stop(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        trainer.stop_requested = True
        return None

    env = MadeUpGames(1, games_of([9]))
    trainer = trainer_in(tmp_path, env, Onlooker(), evaluate=stop, eval_every_frames=200)
    assert trainer.run(100)
    assert not trainer.finish()
    assert lines(tmp_path, "evaluations.jsonl") == []
    trainer.stop_requested, trainer.evaluation.evaluate = False, Judge(1)
    assert trainer.finish()
    assert [line["frames"] for line in lines(tmp_path, "evaluations.jsonl")] == [100]


def test_a_run_stopped_while_it_saves_begins_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge()
    trainer = trainer_in(
        tmp_path, MadeUpGames(1, games_of([9])), Onlooker(), evaluate=judge, eval_every_frames=200
    )
    save = trainer.save

    def stopped() -> Path:
        trainer.stop_requested = True
        return save()

    monkeypatch.setattr(trainer, "save", stopped)
    assert not trainer.run(1000)
    assert (trainer.frames, judge.asked) == (200, [])


def test_a_stopped_evaluation_is_repeated_on_resume(tmp_path: Path) -> None:
    env = MadeUpGames(1, games_of([9]))
    stopped = Judge()
    trainer = trainer_in(tmp_path, env, Onlooker(), evaluate=stopped, eval_every_frames=200)

    def stop(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        trainer.stop_requested = True
        return stopped(frames, should_stop)

    trainer.evaluation.evaluate = stop
    assert not trainer.run(1000)
    assert trainer.frames == 200
    assert lines(tmp_path, "evaluations.jsonl") == []
    trainer.close()

    judge = Judge(*range(5))
    again = trainer_in(
        tmp_path,
        MadeUpGames(1, games_of([9])),
        Onlooker(),
        evaluate=judge,
        eval_every_frames=200,
        resume=True,
    )
    assert again.run(1000)
    assert judge.asked == [200, 400, 600, 800, 1000]
    assert [record["frames"] for record in lines(tmp_path, "evaluations.jsonl")] == judge.asked


def test_the_best_evaluated_weights_are_kept_over_a_resume(tmp_path: Path) -> None:
    def best() -> tuple[int, Any]:
        checkpoint = load_latest(tmp_path / "best", state_only=True)
        assert checkpoint is not None
        return checkpoint.state["frames"], checkpoint.state["agent"]["learner"]["online"]

    options: dict[str, Any] = {"eval_every_frames": 400}
    trainer = real_run(tmp_path, "dqn", evaluate=Judge(1, 3, 2), **options)
    trainer.run(800)
    weights = {key: x.clone() for key, x in trainer.agent.state_dict()["learner"]["online"].items()}
    second = trainer.frames
    trainer.run(1200)
    assert best()[0] == second
    assert same(best()[1], weights)
    trainer.close()

    again = real_run(tmp_path, "dqn", evaluate=Judge(2.5, 3, 4), resume=True, **options)
    again.run(2000)
    assert best()[0] == second
    again.run(2400)
    assert best()[0] == again.frames
    assert len(list((tmp_path / "best").iterdir())) == 1
