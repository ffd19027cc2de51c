"""Files that Stable-Baselines3 itself has written, against what its own policies give."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from agents import load_agent
from agents.foreign.flags import PolicyFlags
from agents.foreign.layers import TOLERANCE
from agents.networks import QNetwork
from ebu.commands.importing import ImportConfig, import_policy
from ebu.commands.policies import load_policy
from tests.commands.test_policies import distilled, scored

pytest.importorskip("stable_baselines3", reason="needs the extra `bench`")

CPU = torch.device("cpu")


def saved(path: Path, algorithm: str, images: bool, **options: Any) -> Any:
    """A model of Stable-Baselines3, saved after a few steps."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    small = {"learning_starts": 10, "buffer_size": 100} if algorithm == "DQN" else {"n_steps": 32}
    if images:
        env: Any = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=1), n_stack=4)
    else:
        env = gymnasium.make("CartPole-v1")
    policy = "CnnPolicy" if images else "MlpPolicy"
    make = getattr(stable_baselines3, algorithm)
    model = make(policy, env, seed=0, device="cpu", **small, **options)
    model.learn(32)
    model.save(path)
    env.close()
    return model


def own_outputs(model: Any, observations: np.ndarray) -> torch.Tensor:
    """Values, or logits less their log-sum, of the library's own policy."""
    states, _ = model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        if hasattr(model.policy, "q_net"):
            values: torch.Tensor = model.policy.q_net(states)
            return values
        logits: torch.Tensor = model.policy.get_distribution(states).distribution.logits
        return logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
@pytest.mark.parametrize("images", [True, False])
def test_a_saved_model_gives_its_own_outputs_here(
    algorithm: str, images: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.zip"
    model = saved(path, algorithm, images)
    rng = np.random.default_rng(0)
    if images:
        observations = rng.integers(256, size=(6, 84, 84, 4), dtype=np.uint8)
        stacks = np.moveaxis(observations, -1, 1)
    else:
        observations = rng.normal(size=(6, 4)).astype(np.float32)
        stacks = observations[:, None]
    flags = PolicyFlags(game="breakout" if images else "CartPole-v1")
    agent = load_policy(path, flags, CPU)
    outputs = agent.outputs_of(torch.from_numpy(stacks.copy()))
    if agent.outputs == "logits":
        outputs = outputs.log_softmax(dim=1)
    expected = own_outputs(model, observations)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=TOLERANCE)
    assert agent.outputs == ("values" if algorithm == "DQN" else "logits")
    if isinstance(agent.network, QNetwork):
        import_policy(ImportConfig(path, tmp_path / "run", flags))
        again = load_agent(tmp_path / "run").outputs_of(torch.from_numpy(stacks.copy()))
        if agent.outputs == "logits":
            again = again.log_softmax(dim=1)
        torch.testing.assert_close(again, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_a_saved_model_is_scored_and_distilled(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    model = saved(path, "PPO", images=False)
    record = scored(path, "--game", "CartPole-v1")
    outcome = distilled(path, "--game", "CartPole-v1", "--out", tmp_path / "out")
    assert outcome.teacher["evaluation"]["returns"] == record["returns"]
    # What it plays is what the library plays.
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    agent = load_policy(path, PolicyFlags(game="CartPole-v1"), CPU)
    over = False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        assert agent.act(observation[None]) == int(action)
        observation, _, terminated, truncated, _ = env.step(int(action))
        over = terminated or truncated
