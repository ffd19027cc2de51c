"""Build an agent from its settings: sampler, target, learner."""

from dataclasses import replace
from typing import Any

import numpy as np

from agents.adaptive import AdaptiveEbu
from agents.agent import Agent
from agents.augmentation import Augmentation
from agents.ebu import EbuTarget
from agents.learner import Learner
from agents.nstep import NStepTarget
from agents.optimality_tightening import OptimalityTighteningTarget
from agents.q_lambda import QLambdaTarget
from agents.retrace import RetraceTarget
from agents.settings import (
    AdaptiveEbuConfig,
    AgentConfig,
    EbuConfig,
    LearnerConfig,
    OptimalityTighteningConfig,
    QLambdaConfig,
    RetraceConfig,
    SegmentConfig,
    TransitionConfig,
    check_frames,
    check_learner,
)
from agents.stacked import StackedLearner
from agents.target import Target
from ebu.errors import UsageError
from ebu.run.ranks import SINGLE, Ranks
from ebu.sampling import Priorities, PrioritizedTransitions, Sampler, TransitionSampler
from ebu.segment_sampling import PrioritizedSegments, SegmentSampler
from ebu.stopwatch import Stopwatch

TARGETS: dict[type[AgentConfig], type[Target[Any]]] = {
    TransitionConfig: NStepTarget,
    OptimalityTighteningConfig: OptimalityTighteningTarget,
    EbuConfig: EbuTarget,
    AdaptiveEbuConfig: EbuTarget,
    RetraceConfig: RetraceTarget,
    QLambdaConfig: QLambdaTarget,
}
"""The target of each type of settings in `agents.settings.AGENTS`."""


def build_sampler(
    config: AgentConfig, rng: np.random.Generator, *, is_part: bool = False
) -> Sampler:
    """The sampler that the settings name; it draws from `rng`.

    `is_part`: its minibatches are one rank's part of those of a run.
    """
    size = config.batch_size
    priorities = Priorities(
        config.priority_exponent, config.importance_exponent, config.importance_updates
    )
    if isinstance(config, SegmentConfig):
        if config.prioritized:
            return PrioritizedSegments(rng, size, config.mix_segments, priorities)
        return SegmentSampler(rng, size, config.mix_segments, is_part=is_part)
    if config.prioritized:
        return PrioritizedTransitions(rng, size, priorities)
    return TransitionSampler(rng, size)


def refuse_ranks(config: AgentConfig) -> None:
    """Raise `UsageError` for an agent that several processes cannot train: see `Ranks`."""
    if isinstance(config, AdaptiveEbuConfig):
        raise UsageError(
            "adaptive_ebu compares its learners by all games, and each of several processes sees "
            "a part of them: train it in one process, or choose another --agent"
        )
    if config.prioritized:
        raise UsageError(
            "--prioritized compares all that is stored, and each of several processes stores a "
            "part of it: train in one process, or add --no-prioritized"
        )


def build_learner(
    config: AgentConfig, learner: LearnerConfig, *, ranks: Ranks = SINGLE, **sizes: Any
) -> Learner:
    """What an agent with these settings trains; `sizes` are all other arguments of `Learner`.

    Raises `UsageError` for settings that do not fit the agent or the frames.
    """
    check_learner(config, learner)
    check_frames(config, sizes["frame_shape"])
    if isinstance(config, AdaptiveEbuConfig):
        # The best learner plays: an average would mix it with those whose weights it was given.
        learner = replace(learner, average_updates=0)
        return StackedLearner(learner, num_learners=config.learners, **sizes)
    return Learner(learner, ranks=ranks, **sizes)


def build_agent(config: AgentConfig, learner: Learner, rng: np.random.Generator) -> Agent:
    """The agent that the settings name; its sampler draws from `rng`."""
    stopwatch = Stopwatch()
    target = TARGETS[type(config)](config, learner, stopwatch)
    sampler = build_sampler(config, rng, is_part=not learner.ranks.is_single)
    augmentation = Augmentation(config, rng.spawn(1)[0])
    if isinstance(config, AdaptiveEbuConfig):
        assert isinstance(learner, StackedLearner)
        return AdaptiveEbu(config, learner, sampler, target, augmentation, stopwatch)
    return Agent(config, learner, sampler, target, augmentation, stopwatch)
