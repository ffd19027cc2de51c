"""Adaptive Episodic Backward Update: K diffusion factors at once (Lee et al. 2019, Algorithm 3)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from agents.agent import Agent
from agents.augmentation import Augmentation
from agents.graphs import capture
from agents.settings import AdaptiveEbuConfig, AgentConfig
from agents.stacked import StackedLearner
from agents.target import Target
from ebu.interfaces import VectorStep
from ebu.replay import EpisodicReplay
from ebu.sampling import Sampler
from ebu.state_checks import MOST_COUNTED, check_range, check_state, require
from ebu.stopwatch import Stopwatch


class ActingLearners:
    """Which learner plays in which environment, and how well each has played.

    Each game that starts takes the next learner, in the order of the environments; a lost life
    starts no game. The score of a learner is the mean return, in raw rewards, of the games that it
    finished since `reset_scores`.

    | attribute | shape, dtype | meaning |
    | --- | --- | --- |
    | players | (N,) int64 | the learner that plays in each environment; (0,) before the reset |
    | agent_steps | | agent steps played in all environments |
    """

    def __init__(self, num_learners: int) -> None:
        self.players = np.zeros(0, dtype=np.int64)
        self.agent_steps = 0
        self._next = 0
        self._returns = np.zeros(0)
        self._totals = np.zeros(num_learners)
        self._games = np.zeros(num_learners, dtype=np.int64)

    def add(self, step: VectorStep) -> None:
        """Add the first frames of a reset, or one step of every environment."""
        if len(self.players) == 0:
            self.players = np.zeros(len(step.started), dtype=np.int64)
            self._returns = np.zeros(len(step.started))
        starting = np.flatnonzero(step.started)
        num_learners = len(self._games)
        self.players[starting] = (self._next + np.arange(len(starting))) % num_learners
        self._next = (self._next + len(starting)) % num_learners
        self._returns += step.rewards
        self._returns[starting] = 0
        self.agent_steps += len(self.players) - len(starting)
        finished = np.flatnonzero(step.terminated | step.truncated)
        np.add.at(self._totals, self.players[finished], self._returns[finished])
        np.add.at(self._games, self.players[finished], 1)

    def check_streams(self, num_streams: int) -> None:
        """Raise `RefusedFileError` unless it plays in this many environments."""
        require(
            len(self.players) in (0, num_streams),
            f"acting_learners/players has {len(self.players)} rows, not {num_streams}",
        )

    def scores(self) -> dict[int, float]:
        """The score of each learner that has finished a game, in the order of their index."""
        candidates = np.flatnonzero(self._games).tolist()
        return {k: float(self._totals[k] / self._games[k]) for k in candidates}

    def reset_scores(self) -> None:
        """Start new scores; a game in progress counts with all its rewards when it ends."""
        self._totals[:] = 0
        self._games[:] = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "players": self.players,
            "agent_steps": self.agent_steps,
            "next": self._next,
            "returns": self._returns,
            "totals": self._totals,
            "games": self._games,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        longer = ("players", "returns")
        check_state(state, self.state_dict(), longer=longer, path="acting_learners/")
        last = len(self._games) - 1
        check_range(state["players"], 0, last, "acting_learners/players")
        check_range(state["games"], 0, MOST_COUNTED, "acting_learners/games")
        check_range(np.array(state["next"]), 0, last, "acting_learners/next")
        require(
            len(state["players"]) == len(state["returns"]),
            "acting_learners/returns has another length than acting_learners/players",
        )
        self.players = state["players"]
        self.agent_steps = state["agent_steps"]
        self._next = state["next"]
        self._returns = state["returns"]
        self._totals, self._games = state["totals"], state["games"]


@dataclass(frozen=True)
class Copy:
    """One copy of a learner's networks to all: the learner, its score, and the agent step."""

    winner: int
    score: float
    agent_step: int


class AdaptiveEbu(Agent):
    """K learners with diffusion factors from 0 to 1, trained on the same minibatches.

    They take turns at playing, from game to game. Every `copy_every_steps` agent steps the networks
    of the learner with the best score since the last copy replace those of all; a copy waits until
    a learner has a score.
    """

    config: AdaptiveEbuConfig
    learner: StackedLearner

    def __init__(
        self,
        config: AdaptiveEbuConfig,
        learner: StackedLearner,
        sampler: Sampler,
        target: Target[AgentConfig],
        augmentation: Augmentation,
        stopwatch: Stopwatch,
    ) -> None:
        super().__init__(config, learner, sampler, target, augmentation, stopwatch)
        self.acting = ActingLearners(config.learners)
        self.copies = 0
        """Copies made so far."""
        self.last_copy: Copy | None = None
        self._values_of = capture(learner.values_of, learner.device, enabled=config.cuda_graphs)

    @property
    def best(self) -> int:
        """The learner with the best score since the last copy; of equal scores the lowest index.

        Without a score the winner of the last copy; before any copy the first learner.
        """
        scores = self.acting.scores()
        if scores:
            return max(scores, key=scores.__getitem__)
        return self.last_copy.winner if self.last_copy else 0

    def acting_values(self, stacks: Tensor) -> Tensor:
        return self._values_of(self._staging.upload(self.acting.players), stacks)

    def evaluation_values(self, stacks: Tensor) -> Tensor:
        """Action values (N, A) float32 of the best learner."""
        return self._values_of(self._staging.upload(np.full(len(stacks), self.best)), stacks)

    def observe(self, step: VectorStep) -> None:
        self.acting.add(step)
        last = self.last_copy.agent_step if self.last_copy else 0
        scores = self.acting.scores()
        if self.acting.agent_steps - last >= self.config.copy_every_steps and scores:
            self.last_copy = Copy(self.best, scores[self.best], self.acting.agent_steps)
            self.learner.copy_weights(self.last_copy.winner)
            self.acting.reset_scores()
            self.copies += 1

    def metrics(self) -> dict[str, float]:
        betas = self.config.betas
        metrics = {**super().metrics(), "adaptive/best_beta": betas[self.best]}
        for k, score in self.acting.scores().items():
            metrics[f"adaptive/score_beta_{betas[k]:.3g}"] = score
        metrics["adaptive/copies"] = float(self.copies)
        if self.last_copy is not None:
            metrics["adaptive/winner_beta"] = betas[self.last_copy.winner]
            metrics["adaptive/winner_score"] = self.last_copy.score
            metrics["adaptive/copied_at_agent_step"] = float(self.last_copy.agent_step)
        return metrics

    def check_memory(self, replay: EpisodicReplay) -> None:
        super().check_memory(replay)
        self.acting.check_streams(replay.num_streams)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "best": self.best,
            "acting_learners": self.acting.state_dict(),
            "copies": self.copies,
            "last_copy": None if self.last_copy is None else asdict(self.last_copy),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.acting.load_state_dict(state["acting_learners"])
        check_state(state, {"copies": 0, "best": 0}, path="agent/")
        last = state["last_copy"]
        if last is not None:
            check_state(last, asdict(Copy(0, 0.0, 0)), path="last_copy/")
        winners = [state["best"], *([] if last is None else [last["winner"]])]
        check_range(np.array(winners), 0, self.config.learners - 1, "agent/best, last_copy/winner")
        self.copies = state["copies"]
        self.last_copy = (
            None if last is None else Copy(last["winner"], last["score"], last["agent_step"])
        )
