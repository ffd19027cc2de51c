"""Atari games as vectors: lives, ends, starts, rewards, seeds, threads."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs.atari
from envs.atari import AtariVector, make_emulators
from envs.faults import EnvironmentHang
from tests.envs.play import actions_for, assert_same, play

WITHOUT_LIVES = ("bowling", "freeway", "pong", "private_eye")


def make(game: str, num_envs: int, **options: Any) -> AtariVector:
    return AtariVector(game, num_envs, **{"seed": 1, "num_threads": 1, **options})


# The number of lives over one game, as the emulator reports it: amidar 0 11 10 9 8 0 (over at the
# last 0), demon_attack 1 4 3 2 1 0 (over at 0), breakout 5 4 3 2 1 0 (over at 0); wizard_of_wor
# continues at 0; atlantis begins with 6 and gives some back.
@pytest.mark.parametrize(
    ("game", "losses"),
    [
        ("breakout", {4}),
        ("amidar", {3}),
        ("wizard_of_wor", {3}),
        ("demon_attack", {3}),
        ("atlantis", set(range(6, 20))),
    ],
)
def test_a_game_reports_its_lost_lives(game: str, losses: set[int]) -> None:
    env = make(game, 2)
    env.reset()
    lost, over = np.zeros(2, int), np.zeros(2, bool)
    for row in actions_for(env, 3000):
        env.send(row)
        step = env.recv()
        lost += step.life_lost & ~over
        assert not (step.life_lost & (step.terminated | step.started)).any()
        over |= step.terminated
        if over.all():
            break
    assert over.all()
    assert set(lost.tolist()) <= losses


@pytest.mark.parametrize("game", WITHOUT_LIVES)
def test_a_game_without_lives_reports_no_lost_life(game: str) -> None:
    env = make(game, 1, max_frames_per_game=160)
    env.reset()
    steps = play(env, actions_for(env, 90))
    assert not any(step.life_lost.any() for step in steps)
    assert sum(int(step.truncated[0]) for step in steps) == 2


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_the_row_after_a_game_starts_the_next_and_ignores_its_action(sticky: float) -> None:
    env, other = (make("pong", 1, repeat_action_probability=sticky) for _ in range(2))
    env.reset()
    other.reset()
    over = False
    for row in actions_for(env, 2000):
        ignored = row if not over else (row + 1) % env.num_actions
        env.send(row)
        other.send(ignored)
        step = env.recv()
        assert_same([step], [other.recv()])
        if over:
            break
        over = bool(step.terminated[0])
        if over:
            assert step.rewards[0] != 0  # the last point ends the game
    assert step.started[0]
    flags = (step.terminated, step.truncated, step.life_lost, step.rewards)
    assert not np.any(flags)
    assert_same(play(env, actions_for(env, 50)), play(other, actions_for(env, 50)))


def test_a_game_over_at_the_time_limit_is_terminated() -> None:
    env = make("breakout", 1)
    env.reset()
    actions = actions_for(env, 1000)
    length = next(t for t, row in enumerate(actions, 1) if play(env, row[None])[0].terminated[0])
    for steps, terminated in ((length, True), (length - 1, False)):
        env = make("breakout", 1, max_frames_per_game=4 * steps)
        env.reset()
        last = play(env, actions[:steps])[-1]
        assert (last.terminated[0], last.truncated[0]) == (terminated, not terminated)


def test_rewards_are_raw() -> None:
    env = make("space_invaders", 1)
    env.reset()
    rewards = {float(step.rewards[0]) for step in play(env, actions_for(env, 400))}
    assert rewards >= {0.0, 5.0, 10.0}  # the two lowest rows of invaders
    assert rewards <= {5.0 * k for k in range(80)}


def test_sticky_actions_differ_by_environment_and_seed() -> None:
    seen = []
    for seed in (1, 1, 2):
        env = make("breakout", 2, seed=seed, repeat_action_probability=0.25)
        env.reset()
        rows = np.repeat(actions_for(env, 100)[:, :1], 2, axis=1)
        seen.append(np.stack([step.frames for step in play(env, rows)]))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()
    assert (seen[0][:, 0] != seen[0][:, 1]).any()


def test_a_game_starts_with_up_to_noop_max_no_ops() -> None:
    native = make_emulators(
        "pong",
        8,
        repeat_action_probability=0.0,
        full_action_space=False,
        noop_max=3,
        max_frames_per_game=1000,
        num_threads=1,
    )
    _, info = native.reset(seed=np.arange(1, 9))
    no_ops = info["episode_frame_number"].tolist()
    for _ in range(11):
        no_ops += native.reset()[1]["episode_frame_number"].tolist()
    # A fair draw leaves one of the four out in 96 games with a probability of 4e-12.
    assert set(no_ops) == {0, 1, 2, 3}
    env = make("freeway", 4, noop_max=30)
    assert len({frame.tobytes() for frame in env.reset().frames}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"noop_max": -1}, "noop_max"),
        ({"max_frames_per_game": 0}, "max_frames_per_game"),
        ({"num_threads": -1}, "num_threads"),
        ({"reseed_every_frames": 0}, "reseed_every_frames"),
        ({"repeat_action_probability": 1.5}, "repeat_action_probability"),
        ({"game": "pnog"}, "did you mean pong"),
        ({"game": "combat"}, "two players"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"game": "pong", "num_envs": 1, **options})


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, in the root of the project."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_emulator_that_does_not_answer_ends_the_process_with_one_line() -> None:
    result = run_python(
        """
        import time
        import numpy as np
        import envs.atari
        import envs.watchdog
        envs.watchdog.GRACE_SECONDS = 1
        env = envs.atari.AtariVector("pong", 1, seed=0, num_threads=1)
        env.watchdog.seconds = 1
        env.reset()
        began = time.monotonic()
        while time.monotonic() - began < 2.5:  # many short waits, longer than the patience
            env.send(np.array([0]))
            env.recv()
        print("alive", flush=True)
        env._collect()  # nothing was sent
        """
    )
    assert result.stdout == "alive\n"
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "pong has not answered for 1 seconds" in result.stderr


def test_the_first_reset_of_many_emulators_may_take_longer_than_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = make("pong", 6, num_threads=1)
    reset, env.watchdog.seconds = env._native.reset, 1
    monkeypatch.setattr(envs.atari, "RESET_SECONDS", 1)
    seconds = 4.0

    def slow_reset(**options: Any) -> Any:
        time.sleep(seconds)
        return reset(**options)

    monkeypatch.setattr(env._native, "reset", slow_reset)
    env.reset()
    seconds = 60.0
    began = time.monotonic()
    with pytest.raises(EnvironmentHang, match="the emulator of pong has not answered for 1 sec"):
        env._reset(np.arange(6) == 2, [1])
    assert time.monotonic() - began < 10
    env.close()


def test_a_closed_environment_leaves_no_thread_behind() -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc on this system")
    result = run_python(
        """
        import os, time
        import numpy as np
        from envs.atari import AtariVector

        def threads():
            return len(os.listdir("/proc/self/task"))

        AtariVector("pong", 1, seed=0, num_threads=1).close()  # numpy's own threads, if any
        time.sleep(1.5)
        before = threads()
        env = AtariVector("pong", 4, seed=0, num_threads=2)
        env.reset()
        for _ in range(10):
            env.send(np.zeros(4, dtype=np.int64))
            env.recv()
        during = threads() - before
        env.send(np.zeros(4, dtype=np.int64))
        env.close()
        time.sleep(1.5)
        print(during, threads() - before)
        """
    )
    # Two emulator threads and the watchdog, and none of OpenCV's.
    assert result.stdout.split() == ["3", "0"], result.stderr
