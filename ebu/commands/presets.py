"""Every setting of a training run, and the presets: lists of what differs from the default."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.architectures import GRID
from agents.settings import AGENTS, AgentConfig, EbuConfig, LearnerConfig, QLambdaConfig
from ebu.run.settings import Bounds, Device, NotNegative, OneOf, Positive, Threads, flat
from ebu.schedules import ExplorationConfig, LoopConfig
from envs import MOST_STEPS, is_atari
from envs.protocols import PROTOCOLS

AUTO = "auto"
"""As a network: that for the observations of the game."""
AGENT_HELP = (
    f"What learns, and from which targets: {', '.join(AGENTS)}. Each has flags of its own, which "
    "--agent NAME --help shows."
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run is made of."""

    game: str = "pong"
    """Atari game (pong, Pong, ALE/Pong-v5) or id of a Gymnasium environment (CartPole-v1)."""
    env_args: tuple[str, ...] | None = None
    """Arguments of a Gymnasium environment's constructor, NAME=VALUE each: --env-args level=3."""
    env_wrappers: tuple[str, ...] | None = None
    """Wrappers around a Gymnasium environment, module:Wrapper each, the innermost first."""
    agent: Annotated[str, tyro.conf.arg(help=AGENT_HELP)] = "ebu"
    preset: str = "default"
    """Starting point of all settings: default, paper (those of the EBU paper's code) or few_frames
    (400,000 frames under atari100k, with the agent q_lambda)."""
    frames: Positive = 10_000_000
    """Frames to train for: 4 per agent step on Atari, 1 in a Gymnasium environment; 400k, 10M. May
    grow when a run is resumed."""
    seed: NotNegative = 0
    """Seed of everything random in the run."""
    run_dir: Path | None = None
    """Run directory; an existing one is resumed [default: runs/GAME-AGENT-PRESET-seedSEED]."""
    protocol: Annotated[str, OneOf(*PROTOCOLS)] = "paper"
    """paper (no sticky actions, a lost life ends a segment), machado (sticky actions) or atari100k
    (the benchmark of 400,000 frames)."""
    train_noops: Annotated[int, Bounds(0, 10_000)] = 30
    """Up to this many no-ops at the start of a training game; evaluation follows the protocol."""
    life_loss_ends_segment: bool | None = None
    """Whether a lost life ends a segment as a game's end does [default: as the protocol says]."""
    eval_max_steps: Annotated[int | None, Bounds(1, MOST_STEPS)] = None
    """Agent steps after which an evaluation game is cut [default: the protocol's 4,500 or 27,000;
    of a Gymnasium environment its own limit, and 1,000 where it has none]."""
    fresh_games: bool = False
    """Resume with new games instead of those that were played: after an environment has failed, or
    for one that is no function of its seed and actions."""
    num_envs: Annotated[int, Bounds(0, 10_000)] = 0
    """Environments stepped together; 0 takes 8, on a GPU 64."""
    replay_capacity: Positive = 1_000_000
    """Transitions in the replay memory; 7 kB each on Atari."""
    device: Device = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: Literal["float32", "tf32", "bfloat16", "auto"] = "float32"
    """Arithmetic of the networks; weights, targets and losses are float32 always. tf32: float32
    with faster, rounded products on a GPU. auto: bfloat16 where the device has instructions for
    it."""
    threads: Threads = 0
    """Threads of torch and of the emulators; 0 takes all processor cores but one, and with a GPU
    all for the emulators and one for torch."""
    deterministic: bool = False
    """On a GPU, take only operations that give the same bits every time; a CPU always does."""
    profile: bool = False
    """Write a trace of some steps to RUN_DIR/profile, for TensorBoard or Perfetto."""
    init_from: Path | None = None
    """Start from the weights of this run, or student, which must have the same network."""
    distill: tuple[str, ...] | None = None
    """Distil the agent's best evaluated weights into these networks during training (net2 net3);
    they go to RUN_DIR/students and change nothing in the run."""
    method: AgentConfig = field(default_factory=lambda: AGENTS["ebu"])
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


DEFAULT = TrainConfig()

PAPER = replace(
    DEFAULT,
    preset="paper",
    train_noops=0,
    num_envs=1,
    method=EbuConfig(mix_segments=1),
    learner=replace(
        DEFAULT.learner,
        output_scale=1.0,
        optimizer="rmsprop",
        learning_rate=2.5e-4,
        optimizer_epsilon=0.01,
        loss_reduction="sum",
        target_sync_updates=10_000,
        average_updates=0,
    ),
    exploration=replace(
        DEFAULT.exploration, epsilon_end=0.1, epsilon_decay_steps=1_000_000, random_start_actions=4
    ),
    loop=replace(
        DEFAULT.loop,
        updates_per_step=1.0,
        learning_starts=50_000,
        eval_every_frames=250_000,
        eval_episodes=30,
    ),
)

# Rewards are raw, and an episode that ends well is long: a Huber loss that is linear from errors
# of 1 would fit the median of the targets, and never learn what the few last steps are worth.
GYMNASIUM = replace(
    DEFAULT,
    frames=50_000,
    train_noops=0,
    num_envs=8,
    replay_capacity=100_000,
    threads=1,
    method=EbuConfig(batch_size=64, mix_segments=16, clip_rewards=False),
    learner=replace(
        DEFAULT.learner,
        network=AUTO,
        learning_rate=2e-3,
        huber_delta=100.0,
        target_sync_updates=50,
    ),
    exploration=replace(DEFAULT.exploration, epsilon_decay_steps=5_000),
    loop=replace(
        DEFAULT.loop, updates_per_step=0.5, learning_starts=1_000, eval_every_frames=10_000
    ),
)
"""The default preset for a Gymnasium environment."""

FEW_FRAMES = replace(
    DEFAULT,
    preset="few_frames",
    agent="q_lambda",
    frames=400_000,
    protocol="atari100k",
    method=QLambdaConfig(mix_segments=32, trace_lambda=0.9, shift_pixels=4),
    exploration=replace(DEFAULT.exploration, epsilon_decay_steps=10_000),
    loop=replace(DEFAULT.loop, learning_starts=1_600),
)
"""What pilots on two games of `atari100k-5` suggest, not frozen: docs/results/few_frames.md."""

PRESETS = {"default": DEFAULT, "paper": PAPER, "few_frames": FEW_FRAMES}


def with_network(config: TrainConfig, frame_shape: Sequence[int]) -> TrainConfig:
    """A run with the network that `auto` is for its game, whose frames have this shape."""
    if config.learner.network != AUTO:
        return config
    if is_atari(config.game):
        network = DEFAULT.learner.network
    else:
        # Of all networks only this one takes small grids.
        network = GRID if len(frame_shape) == 3 else "32-32-32/64"
    return replace(config, learner=replace(config.learner, network=network))


def preset_for(game: str, preset: str) -> TrainConfig:
    """The preset of this name for a game; Gymnasium environments have a default of their own."""
    return GYMNASIUM if preset == "default" and not is_atari(game) else PRESETS[preset]


def for_agent(preset: TrainConfig, agent: str) -> TrainConfig:
    """A preset with the settings of another agent: its own defaults where the preset has none."""
    settings, usual = AGENTS[agent], flat(AGENTS[preset.agent])
    known = {entry.name for entry in dataclasses.fields(settings)}
    different = {
        name: value
        for name, value in flat(preset.method).items()
        if name in known and value != usual[name]
    }
    return replace(preset, agent=agent, method=replace(settings, **different))
