"""The chain: its layout, its ends, Gymnasium's own checker."""

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envs.chain import LEFT, RIGHT, Chain


def play(env: gymnasium.Env, actions: list[int]) -> list[tuple[int, float, bool, bool]]:
    """Observation, reward, terminated, truncated after each action."""
    env.reset(seed=0)
    return [env.step(action)[:4] for action in actions]


@pytest.mark.parametrize("options", [{}, {"num_states": 2}, {"render_mode": "ansi"}])
def test_gymnasiums_checker_has_nothing_to_say(options):
    # Its warnings are errors here, as in all tests.
    check_env(gymnasium.make("ebu/Chain-v0", **options).unwrapped)


def test_five_states_and_the_goal_four_steps_to_the_right():
    env = gymnasium.make("ebu/Chain-v0")
    assert env.observation_space.n == 5
    assert env.action_space.n == 2
    assert env.reset(seed=3) == (0, {})
    assert play(env, [RIGHT] * 4) == [
        (1, 0.0, False, False),
        (2, 0.0, False, False),
        (3, 0.0, False, False),
        (4, 1.0, True, False),
    ]


def test_left_leads_back_and_stays_in_the_first_state():
    steps = play(Chain(4), [LEFT, RIGHT, RIGHT, LEFT, LEFT, LEFT])
    assert [state for state, *_ in steps] == [0, 1, 2, 1, 0, 0]
    assert {tuple(rest) for _, *rest in steps} == {(0.0, False, False)}


def test_a_game_is_cut_after_100_steps():
    steps = play(gymnasium.make("ebu/Chain-v0"), [LEFT] * 100)
    assert steps[-1] == (0, 0.0, False, True)
    assert not any(truncated for *_, truncated in steps[:-1])


def test_no_step_before_a_reset_nor_after_the_goal():
    env = Chain(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(RIGHT)
    assert play(env, [RIGHT]) == [(1, 1.0, True, False)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(LEFT)
    assert play(env, [LEFT]) == [(0, 0.0, False, False)]


@pytest.mark.parametrize("action", [-1, 2, 0.5])
def test_other_actions_are_refused(action):
    env = Chain()
    env.reset()
    with pytest.raises(gymnasium.error.InvalidAction, match=str(action)):
        env.step(action)


@pytest.mark.parametrize("num_states", [1, 0, -3])
def test_a_chain_has_a_start_and_a_goal(num_states):
    with pytest.raises(ValueError, match=f"num_states is {num_states}"):
        Chain(num_states)


def test_it_shows_the_present_state_in_brackets():
    env = gymnasium.make("ebu/Chain-v0", render_mode="ansi")
    env.reset()
    assert env.render() == "[s1] s2  s3  s4  s5 "
    env.step(RIGHT)
    assert env.render() == " s1 [s2] s3  s4  s5 "
    assert Chain().render() is None
