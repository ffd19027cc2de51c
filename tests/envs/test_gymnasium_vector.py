"""Any Gymnasium environment with discrete actions, as rows."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import tests.envs.tiny  # noqa: F401
from envs.gymnasium_vector import GymnasiumVector
from envs.observations import grey_frame
from envs.vector import environment_seed
from tests.envs.play import actions_for, play


def test_cartpole_is_what_gymnasium_plays() -> None:
    env = GymnasiumVector("CartPole-v1", 2, seed=5)
    assert (env.frame_shape, env.frame_dtype, env.num_actions) == ((4,), np.dtype(np.float32), 2)
    assert (env.stack, env.frames_per_step) == (1, 1)
    rows = [env.reset(), *play(env, actions_for(env, 120))]
    for j in range(2):
        single: gymnasium.Env[Any, Any] = gymnasium.make("CartPole-v1")
        observation, _ = single.reset(seed=environment_seed(5, j, 0))
        over, games = False, 0
        np.testing.assert_array_equal(rows[0].frames[j], observation)
        for row, action in zip(rows[1:], actions_for(env, 120)[:, j], strict=True):
            assert row.started[j] == over
            if over:
                observation, _ = single.reset()
                reward, over = 0.0, False
            else:
                observation, step_reward, over, cut, _ = single.step(int(action))
                reward = float(step_reward)
                assert not cut
                games += over
            np.testing.assert_array_equal(row.frames[j], observation)
            assert row.rewards[j] == reward
            assert row.terminated[j] == over
            assert not row.truncated[j]
            assert not row.life_lost[j]
        assert games >= 2


def first_frames(env_id: str) -> tuple[GymnasiumVector, np.ndarray, np.ndarray]:
    """A vector of two, the frame of its second environment, and what Gymnasium shows there."""
    env = GymnasiumVector(env_id, 2, seed=5)
    single: gymnasium.Env[Any, Any] = gymnasium.make(env_id)
    return env, env.reset().frames[1], single.reset(seed=environment_seed(5, 1, 0))[0]


@pytest.mark.parametrize("env_id", ["TinyColour-v0", "TinyGrey-v0"])
def test_images_become_grey_frames(env_id: str) -> None:
    env, frame, image = first_frames(env_id)
    assert (env.frame_shape, env.frame_dtype, env.stack) == ((84, 84), np.dtype(np.uint8), 4)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, grey_frame(image))
    if env_id == "TinyGrey-v0":
        np.testing.assert_array_equal(frame, image)


def test_numbers_become_a_vector() -> None:
    env, frame, observation = first_frames("TinyNumbers-v0")
    assert (env.frame_shape, env.frame_dtype, env.stack) == ((6,), np.dtype(np.float32), 1)
    np.testing.assert_array_equal(frame, observation.astype(np.float32).reshape(-1))


def test_a_grey_frame_is_the_luma_of_each_area() -> None:
    image = np.zeros((168, 168, 3), dtype=np.uint8)
    image[:2, :2] = [255, 0, 0]
    image[:2, 2:4] = [0, 255, 0]
    image[2:4, :2] = [0, 0, 255]
    image[2, 2] = 100  # one of the four pixels of an area
    frame = grey_frame(image)
    assert frame.shape == (84, 84)
    # ITU-R 601: 0.299 red, 0.587 green, 0.114 blue.
    assert frame[:2, :2].tolist() == [[76, 150], [29, 25]]
    assert not frame[2:].any()
    assert (grey_frame(np.full((7, 5), 33, dtype=np.uint8)) == 33).all()
    assert (grey_frame(np.full((210, 160, 1), 33, dtype=np.uint8)) == 33).all()


def test_actions_may_begin_anywhere() -> None:
    env = GymnasiumVector("TinyColour-v0", 3, seed=5)
    env.reset()
    env.send(np.array([0, 1, 2]))
    assert env.recv().rewards.tolist() == [5.0, 6.0, 7.0]  # the reward is the action
    with pytest.raises(ValueError, match=r"0\.\.2"):
        env.send(np.array([5, 5, 5]))


def test_a_game_over_at_the_time_limit_is_terminated_also_after_a_reset() -> None:
    env = GymnasiumVector("TinyLast-v0", 1, seed=5)
    for _ in range(2):
        env.reset()
        (step,) = play(env, actions_for(env, 1))
        assert step.terminated[0]
        assert not step.truncated[0]
        assert not step.started[0]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("TinyContinuous-v0", "TinyContinuous-v0 has actions Box.*only Discrete"),
        ("TinyDict-v0", "flatten them with --env-wrappers gymnasium.wrappers:FlattenObservation"),
        ("Blackjack-v1", "--env-wrappers"),
        ("TinyManyActions-v0", "257 actions"),
    ],
)
def test_other_actions_and_observations_are_refused_in_one_line(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        GymnasiumVector(env_id, 1, seed=0)
    assert "\n" not in str(error.value)
