"""Files that Stable-Baselines3 itself has written, against what its own policies give."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.spaces import Box, Discrete

from agents import load_agent
from agents.foreign.flags import PolicyFlags
from agents.foreign.layers import TOLERANCE
from agents.networks import QNetwork
from ebu.commands.importing import ImportConfig, import_policy
from ebu.commands.policies import load_policy
from tests.commands.test_export import export
from tests.commands.test_policies import distilled, scored

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
ACTIONS = 4
"""Of Breakout."""


class Noise(gymnasium.Env[np.ndarray, int]):
    """States of the form that Atari's wrappers make: without OpenCV there are no wrappers."""

    observation_space = Box(0, 255, (84, 84, 4), np.uint8)
    action_space = Discrete(ACTIONS)  # type: ignore[assignment]

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**options)
        return self._state(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._state(), float(action == 1), bool(self.np_random.random() < 0.1), False, {}

    def _state(self) -> np.ndarray:
        return self.np_random.integers(256, size=(84, 84, 4), dtype=np.uint8)


def saved(path: Path, algorithm: str, images: bool, **options: Any) -> Any:
    """A model of Stable-Baselines3, saved after a few steps."""
    small = {"learning_starts": 10, "buffer_size": 100} if algorithm == "DQN" else {"n_steps": 32}
    env: Any = Noise() if images else gymnasium.make("CartPole-v1")
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


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_a_saved_model_is_scored_distilled_exported_and_played(
    algorithm: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "model.zip", tmp_path / "out"
    model = saved(path, algorithm, images=False)
    returns = scored(path, "--game", "CartPole-v1")["returns"]
    outcome = distilled(path, "--game", "CartPole-v1", "--export", "--out", out)
    assert outcome.teacher["evaluation"]["returns"] == returns
    # The files play the games of the agents that they are made of.
    files = {name: out / "export" / f"{name}.onnx" for name in ("teacher", "2-2-2_4-kl")}
    assert scored(files["teacher"])["returns"] == returns
    (chosen,) = outcome.config.best_of(outcome.students)
    assert scored(files["2-2-2_4-kl"])["returns"] == chosen["evaluation"]["returns"]
    # What the zip and its file play is what the library plays.
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    agents = [
        load_policy(path, PolicyFlags(game="CartPole-v1"), CPU),
        load_policy(files["teacher"], PolicyFlags(), CPU),
    ]
    over = False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        assert [agent.act(observation[None]) for agent in agents] == [int(action)] * 2
        observation, _, terminated, truncated, _ = env.step(int(action))
        over = terminated or truncated
    env.close()


@pytest.mark.slow
def test_a_saved_model_of_images_is_scored_and_exported(tmp_path: Path) -> None:
    path, out = tmp_path / "model.zip", tmp_path / "out"
    saved(path, "DQN", images=True)
    export(path, "--game", "breakout", "--out", out)
    record = scored(path, "--game", "breakout", "--max-steps", 100)
    file = scored(out / "export" / "teacher.onnx", "--max-steps", 100)
    assert (file["game"], file["returns"]) == ("breakout", record["returns"])
