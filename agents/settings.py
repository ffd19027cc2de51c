"""The agents by name, and the settings of each: a table of choices that imports no torch.

An agent is a choice of which transitions come next (the sampler), what their values are trained
towards (the target), a loss and a network. A row of `AGENTS` names the settings; the type of the
settings decides the target (`agents.registry`), and flags change the choices that they have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ebu.errors import UsageError
from ebu.run.settings import (
    Bounds,
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
)


@dataclass(frozen=True)
class AgentConfig:
    """What every agent is told about its minibatches."""

    gamma: Share = 0.99
    """Discount factor."""
    batch_size: Annotated[int, Bounds(1, 65_536)] = 32
    """Transitions in a minibatch."""
    clip_rewards: bool = True
    """Clip rewards to [-1, 1] in targets (evaluation always counts raw rewards)."""
    cuda_graphs: bool = True
    """On a GPU, launch an update as one graph of all its operations."""
    prioritized: bool = False
    """Sample in proportion to the last error (Schaul et al. 2016): transitions, or whole segments
    where the agent learns from those."""
    priority_exponent: NotNegativeFloat = 0.6
    """With --prioritized, alpha: 0 samples uniformly, 1 in proportion to the error."""
    importance_exponent: Share = 0.4
    """With --prioritized, beta of the importance weights at the start; it rises to 1."""
    importance_updates: Positive = 40_000
    """With --prioritized, updates until beta is 1: fewer than a run of 1M frames makes."""
    shift_pixels: Annotated[int, Bounds(0, 40)] = 0
    """Shift training images at random by up to this many pixels (Yarats et al. 2021); 0 never."""
    intensity: Share = 0.0
    """Multiply the images that are trained on by 1 + intensity * noise, the noise normal and cut at
    2 (Yarats et al. 2021); 0 leaves them."""

    gamma_start: Share | None = None
    """Discount factor at the first update; the horizon 1 / (1 - gamma) changes by a constant factor
    until it is --gamma's (Schwarzer et al. 2023) [default: --gamma]."""
    anneal_updates: Positive = 10_000
    """Updates over which --gamma-start, --n-step-start and --beta-start lead to --gamma, --n-step
    and --beta; again after each reset."""

    @property
    def annealed(self) -> list[str]:
        """Settings that begin with another value."""
        names = ("gamma", "n_step", "beta")
        return [name for name in names if getattr(self, f"{name}_start", None) is not None]

    def check(self) -> None:
        """Raise `UsageError` for settings that do not fit each other; ranges are in the types."""
        if not self.annealed and self.anneal_updates != AgentConfig.anneal_updates:
            raise UsageError(
                "--anneal-updates changes nothing without --gamma-start, --n-step-start or "
                "--beta-start: add one that the agent has"
            )
        if self.gamma_start is not None and 1 in (self.gamma_start, self.gamma):
            raise UsageError("--gamma-start leads to --gamma by their horizons: take both below 1")
        for name in ("priority_exponent", "importance_exponent", "importance_updates"):
            if not self.prioritized and getattr(self, name) != getattr(AgentConfig, name):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} changes nothing without --prioritized: add it")


@dataclass(frozen=True)
class TransitionConfig(AgentConfig):
    """Single transitions, with the rewards of one or more steps."""

    n_step: Annotated[int, Bounds(1, 1_000)] = 1
    """Rewards in a target; fewer where the game ends before."""
    n_step_start: Annotated[int, Bounds(1, 1_000)] | None = None
    """Rewards in a target at the first update; the number changes by a constant factor until it is
    --n-step (Schwarzer et al. 2023) [default: --n-step]."""
    double: bool = False
    """The online network chooses the next action, the target network evaluates it."""


@dataclass(frozen=True)
class OptimalityTighteningConfig(AgentConfig):
    """Single transitions, with bounds on their values."""

    bound_steps: Annotated[int, Bounds(1, 1_000)] = 4
    """Steps before and after a transition whose returns bound its value."""
    bound_penalty: NotNegativeFloat = 4.0
    """Weight of a violated bound relative to the one-step target."""

    def check(self) -> None:
        super().check()
        # Upper bounds are returns divided by powers of gamma.
        if self.gamma == 0:
            raise UsageError("--gamma must be positive for bounds on the values, not 0")


@dataclass(frozen=True)
class SegmentConfig(AgentConfig):
    """Whole segments, trained on from the end backward."""

    mix_segments: Positive = 4
    """Segments in a minibatch; 1 is the original of EBU."""

    def check(self) -> None:
        super().check()
        if self.batch_size % self.mix_segments:
            raise UsageError(
                f"--mix-segments {self.mix_segments} must divide --batch-size {self.batch_size}"
            )


@dataclass(frozen=True)
class EbuConfig(SegmentConfig):
    """EBU with one diffusion factor."""

    beta: Share = 0.5
    """Diffusion factor: the share of the propagated value in a backward target."""
    beta_start: Share | None = None
    """Diffusion factor at the first update, which changes linearly until it is --beta [default:
    --beta]."""
    double: bool = False
    """The online network chooses the next action, the target network evaluates it."""


@dataclass(frozen=True)
class AdaptiveEbuConfig(EbuConfig):
    """EBU with several diffusion factors, which compete."""

    beta: Share = EbuConfig.beta
    """Diffusion factor of a single learner (--learners 1); several have 0, 1/(K-1), ..., 1."""
    learners: Annotated[int, Bounds(1, 1_000)] = 11
    """Learners K; each has networks and a diffusion factor of its own."""
    copy_every_steps: Positive = 62_500
    """Agent steps between two copies of the best learner's networks to all."""

    def check(self) -> None:
        super().check()
        if self.learners > 1 and (self.beta != type(self).beta or self.beta_start is not None):
            flag = f"--beta {self.beta}" if self.beta_start is None else "--beta-start"
            raise UsageError(
                f"{flag} is for --learners 1: {self.learners} learners have the "
                "diffusion factors from 0 to 1 at equal distances"
            )

    @property
    def betas(self) -> tuple[float, ...]:
        """The learners' diffusion factors (K,), ascending."""
        if self.learners == 1:
            return (self.beta,)
        return tuple(k / (self.learners - 1) for k in range(self.learners))


@dataclass(frozen=True)
class RetraceConfig(SegmentConfig):
    """Retrace: how far values travel, and of which policy."""

    trace_lambda: Share = 1.0
    """How much of a trace remains after a step that both policies choose alike."""
    target_epsilon: Share = 0.01
    """The policy whose values are learned is epsilon-greedy with this epsilon."""


@dataclass(frozen=True)
class QLambdaConfig(SegmentConfig):
    """Peng's Q(lambda): how far values travel."""

    trace_lambda: Share = 0.7
    """Share of the value propagated from the next step; the rest is the best estimate."""


@dataclass(frozen=True)
class LearnerConfig:
    """The network, its loss and its optimizer."""

    network: str = "nature"
    """Q-network: nature, dueling, impala, the small net1, net2, net3, or widths such as
    16-32-32/256. Flat observations get a hidden layer for the convolutions. auto: nature on Atari,
    elsewhere a single convolution for grids (grid) and 32-32-32/64 for all else."""
    output_scale: PositiveFloat = 0.1
    """Factor on the initial weights and biases of the output layer. Small ones start all action
    values near 0; 1 is the initialisation of the EBU paper's code."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """adam, or the centred RMSProp of DQN 2015 with its epsilon inside the root."""
    learning_rate: PositiveFloat = 1e-4
    """Step size of the optimizer."""
    optimizer_epsilon: Annotated[float, Bounds(least=1e-30)] = 1e-5
    """Added to the denominator (adam) or inside the root (rmsprop)."""
    weight_decay: NotNegativeFloat = 0.0
    """Decoupled weight decay of adam: AdamW (Loshchilov, Hutter 2019)."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """How the Huber losses of a minibatch are reduced to one."""
    huber_delta: PositiveFloat = 1.0
    """Size of an error up to which the Huber loss is quadratic; linear beyond."""
    target_sync_updates: Positive = 1_000
    """Updates between two copies of the online weights to the target network."""
    target_average: Share = 0.0
    """Share of the online weights that is mixed into the target network after every update, instead
    of copies; 0 copies."""
    quantiles: Annotated[int, Bounds(0, 1_000)] = 0
    """Quantiles of each action's return that the network predicts (Dabney et al. 2018); 0 predicts
    the mean alone."""
    noisy: bool = False
    """Noise of learned size on the weights of the head's dense layers (Fortunato et al. 2018)
    explores in training: add --epsilon-end 0. Evaluations play without it."""
    reset_updates: NotNegative = 0
    """Updates between two resets: the head gets new random weights, convolutions move a fifth of
    the way to new ones, the optimizer's averages are cleared (D'Oro et al. 2023); 0 never
    resets."""
    average_updates: NotNegative = 2_000
    """Updates over which the weights that play evaluations, and that load_agent loads, are averaged
    (Polyak, Juditsky 1992); 0 takes the newest. adaptive_ebu takes its best learner's newest."""
    average_acts: bool = False
    """The averaged weights choose actions in training, too."""

    def check(self) -> None:
        """Raise `UsageError` for settings that change nothing, or leave nothing of the weights."""
        if self.average_acts and not self.average_updates:
            raise UsageError("--average-acts is for averaged weights: add --average-updates 2000")
        if self.average_acts and self.noisy:
            raise UsageError("--average-acts acts without noise: leave it out, or --noisy")
        if self.weight_decay and self.optimizer == "rmsprop":
            raise UsageError(f"--weight-decay {self.weight_decay} is for --optimizer adam")
        if self.weight_decay * self.learning_rate >= 1:
            raise UsageError(
                f"--weight-decay {self.weight_decay} leaves nothing of the weights: its product "
                f"with --learning-rate {self.learning_rate} must be below 1"
            )


AGENTS: dict[str, AgentConfig] = {
    "ebu": EbuConfig(),
    "adaptive_ebu": AdaptiveEbuConfig(),
    "dqn": TransitionConfig(),
    "double_dqn": TransitionConfig(double=True),
    "nstep": TransitionConfig(n_step=3),
    "prioritized": TransitionConfig(prioritized=True, double=True),
    "retrace": RetraceConfig(),
    "q_lambda": QLambdaConfig(),
    "optimality_tightening": OptimalityTighteningConfig(),
}
"""The settings of each agent by the name `--agent` takes; flags change any of them."""


def check_learner(config: AgentConfig, learner: LearnerConfig) -> None:
    """Raise `UsageError` for settings of the learner that do not fit the agent."""
    if learner.reset_updates and config.annealed and config.anneal_updates > learner.reset_updates:
        raise UsageError(
            f"--anneal-updates {config.anneal_updates} begins again at each reset and never ends: "
            f"take at most --reset-updates {learner.reset_updates}"
        )
    if learner.quantiles and not isinstance(config, TransitionConfig | EbuConfig):
        raise UsageError("--quantiles is for ebu, dqn, double_dqn, nstep and prioritized alone")
    if isinstance(config, AdaptiveEbuConfig):
        for flag in ("quantiles", "reset_updates", "target_average", "noisy", "average_acts"):
            if getattr(learner, flag):
                raise UsageError(
                    f"--{flag.replace('_', '-')} is not for adaptive_ebu: leave it out"
                )


def check_frames(config: AgentConfig, frame_shape: Sequence[int]) -> None:
    """Raise `UsageError` for settings of the agent that do not fit what it sees."""
    if (config.shift_pixels or config.intensity) and len(frame_shape) != 2:
        raise UsageError("--shift-pixels and --intensity change images: leave them out here")
