"""Trains agents on halves of given minibatches, one half in each of two ranks.

    python -m tests.ranked_updates DIRECTORY

In a single process they train on the whole minibatches. Each agent's weights go to
DIRECTORY/AGENT-RANK.safetensors.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from agents import AGENTS, Agent, LearnerConfig, build_agent, build_learner
from agents.settings import EbuConfig
from ebu.replay import EpisodicReplay
from ebu.run.ranks import Ranks
from ebu.sampling import Minibatches, Piece, Sampler
from tests.made_up import CPU, NUM_ACTIONS, MadeUpGames, Played, random_games

UPDATES, BATCH_SIZE = 200, 16
LEARNERS: dict[str, dict[str, Any]] = {
    "dqn": {"loss_reduction": "sum", "optimizer": "rmsprop", "optimizer_epsilon": 0.01},
    "ebu": {"loss_reduction": "mean", "average_updates": 50},
}
METHODS = {
    "dqn": replace(AGENTS["dqn"], batch_size=BATCH_SIZE),
    # A segment for each rank: its targets are computed by the rank that trains on it.
    "ebu": EbuConfig(batch_size=BATCH_SIZE, mix_segments=2),
}


class PartSampler(Sampler):
    """Gives a rank its part of each minibatch that another sampler draws."""

    def __init__(self, whole: Sampler, ranks: Ranks) -> None:
        super().__init__(whole.rng, whole.batch_size)
        self.needs_segments = whole.needs_segments
        self.whole, self.ranks = whole, ranks

    def sample(self, replay: EpisodicReplay, updates: int) -> Minibatches:
        drawn = self.whole.sample(replay, updates)
        size = BATCH_SIZE // self.ranks.world_size
        mine = slice(self.ranks.rank * size, (self.ranks.rank + 1) * size)
        return Minibatches(
            drawn.steps[:, mine],
            drawn.streams[:, mine],
            pieces=tuple(part for update in range(updates) for part in _cut(drawn, update, mine)),
        )


def _cut(drawn: Minibatches, update: int, mine: slice) -> list[Piece]:
    """The pieces of some columns of a minibatch."""
    begin, end = update * BATCH_SIZE + mine.start, update * BATCH_SIZE + mine.stop
    cut, position = [], 0
    for draw, first, size in drawn.pieces:
        low, high = max(begin, position), min(end, position + size)
        if low < high:
            cut.append(Piece(draw, first + low - position, high - low))
        position += size
    return cut


def build(name: str, ranks: Ranks) -> Agent:
    method = METHODS[name]
    learner = build_learner(
        method,
        LearnerConfig(target_sync_updates=40, learning_rate=1e-3, **LEARNERS[name]),
        stack=3,
        frame_shape=MadeUpGames.frame_shape,
        num_actions=NUM_ACTIONS,
        device=CPU,
        precision="float32",
        # Other weights on the other rank: it takes those of the first.
        rng=np.random.default_rng(1 + ranks.rank),
        ranks=ranks,
    )
    learner.share()
    agent = build_agent(method, learner, np.random.default_rng(2))
    agent.sampler = PartSampler(agent.sampler, ranks)
    return agent


def train(name: str, ranks: Ranks) -> dict[str, Tensor]:
    """The weights that play evaluations after `UPDATES` updates."""
    # Segments of 1 to 25 transitions: of the two in a minibatch none is as long as the other.
    played = Played(MadeUpGames(4, random_games(3, 25)), capacity=800)
    played.play(150)
    agent = build(name, ranks)
    for _ in range(UPDATES // 4):
        played.play(1)
        agent.learn(played.replay, 4)
    network = agent.learner.average or agent.learner.online
    return dict(network.state_dict())


if __name__ == "__main__":
    ranks = Ranks.from_environment()
    with ranks.connected():
        for name in LEARNERS:
            path = Path(sys.argv[1], f"{name}-{ranks.rank}.safetensors")
            safetensors.torch.save_file(train(name, ranks), path)
