"""Play an Atari game by an exported network, without torch and without this project.

pip install onnxruntime "ale-py[vector]"
python play_onnx.py net2-kl.onnx [SEED]
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
from ale_py import AtariVectorEnv

RULES: dict[str, dict[str, Any]] = {
    "paper": {"noop_max": 31, "max_num_frames_per_episode": 18_000},
    "atari100k": {"noop_max": 31, "max_num_frames_per_episode": 108_000},
    "machado": {"noop_max": 0, "repeat_action_probability": 0.25, "full_action_space": True},
}


def play(path: str, seed: int = 0, epsilon: float = 0.05) -> float:
    """The score of one game, by the rules that the network was trained for."""
    network = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = network.get_modelmeta().custom_metadata_map
    rules = {"use_fire_reset": False, "reward_clipping": False, **RULES[about["protocol"]]}
    if "action_set" in about:
        rules["full_action_space"] = about["action_set"] == "full"
    game, rng = AtariVectorEnv(about["game"], 1, **rules), np.random.default_rng(seed)
    stacks, _ = game.reset(seed=seed)  # (1, 4, 84, 84) uint8, oldest frame first
    score, over = 0.0, False
    while not over:
        (outputs,) = network.run(None, {"stacks": stacks})  # (1, actions) float32
        explores, any_action = rng.random(1) < epsilon, rng.integers(outputs.shape[1], size=1)
        actions = np.where(explores, any_action, outputs.argmax(axis=1))
        stacks, rewards, terminated, truncated, _ = game.step(actions)
        score, over = score + float(rewards[0]), bool(terminated[0] or truncated[0])
    return score


if __name__ == "__main__":
    print(play(sys.argv[1], *map(int, sys.argv[2:3])))
