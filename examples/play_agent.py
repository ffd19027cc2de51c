"""Play one game with a trained agent: python examples/play_agent.py RUN_DIR [SEED]"""

import sys
from pathlib import Path

import numpy as np
import torch

from agents import load_agent
from ebu.commands.scoring import variant_of
from ebu.commands.trust import check_trust
from ebu.frames import FrameStack, torch_dtype
from ebu.run.directory import read_config
from envs import make_vector
from envs.protocols import PROTOCOLS


def play(run_dir: str, seed: int = 0) -> float:
    """The score of one game, in which the agent always takes the action it values most."""
    agent = load_agent(run_dir)
    settings = agent.config["settings"]
    protocol = PROTOCOLS[settings["protocol"]]
    variant = variant_of(settings)
    env = make_vector(
        settings["game"], 1, seed=seed, protocol=protocol, training=False, variant=variant
    )
    dtype, cpu = torch_dtype(env.frame_dtype), torch.device("cpu")
    frames = FrameStack(1, env.frame_shape, dtype, env.stack, cpu)
    step, score, over = env.reset(), 0.0, False
    while not over:
        (stack,) = frames.push(step.frames, step.started)  # (4, 84, 84) uint8, oldest frame first
        env.send(np.array([agent.act(stack)]))
        step = env.recv()
        score += float(step.rewards[0])
        over = bool(step.terminated[0] or step.truncated[0])
    env.close()
    return score


if __name__ == "__main__":
    run = Path(sys.argv[1])
    check_trust(run, read_config(run)["settings"], trusted=False)
    print(play(sys.argv[1], *map(int, sys.argv[2:3])))
