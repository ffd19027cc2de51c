"""The chain: its layout, its ends, Gymnasium's own checker."""

from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401 (registers ebu/Chain-v0)
from envs.chain import LEFT, RIGHT, Chain


def play(env: gymnasium.Env[Any, Any], actions: list[int]) -> list[tuple[Any, ...]]:
    """Observation, reward, terminated, truncated after each action."""
    env.reset(seed=0)
    return [env.step(action)[:4] for action in actions]


@pytest.mark.parametrize("options", [{}, {"num_states": 2}, {"render_mode": "ansi"}])
def test_gymnasiums_checker_passes(options: dict[str, Any]) -> None:
    # Its warnings are errors here, as in all tests.
    check_env(gymnasium.make("ebu/Chain-v0", **options).unwrapped)


def test_a_game_by_hand() -> None:
    env: gymnasium.Env[Any, Any] = gymnasium.make("ebu/Chain-v0")
    assert env.reset(seed=3) == (0, {})
    assert play(env, [LEFT, RIGHT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT]) == [
        *((state, 0.0, False, False) for state in (0, 1, 2, 1, 2, 3)),
        (4, 1.0, True, False),
    ]
    steps = play(env, [LEFT] * 100)
    assert steps[-1] == (0, 0.0, False, True)
    assert not any(truncated for *_, truncated in steps[:-1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="num_states is 1"):
        Chain(1)
    env = Chain(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(RIGHT)  # type: ignore[arg-type]
    assert play(env, [RIGHT]) == [(1, 1.0, True, False)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(LEFT)  # type: ignore[arg-type]
    env.reset()
    for action in (-1, 2, 0.5):
        with pytest.raises(gymnasium.error.InvalidAction, match=str(action)):
            env.step(action)  # type: ignore[arg-type]
