"""Every setting of a training run, the presets, and what cannot be run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents import AGENTS, AgentConfig, LearnerConfig
from agents.architectures import architecture
from ebu.commandline import at_most, device_named, not_negative, one_of, parse, positive, shares
from ebu.errors import UsageError
from ebu.schedules import ExplorationConfig
from envs.protocols import PROTOCOLS

AGENT_HELP = (
    f"What learns, and from which targets: {', '.join(AGENTS)}. Each has flags of its own, which "
    "--agent NAME --help shows."
)


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation in training, on environments and random numbers of its own."""

    eval_every_frames: int | None = None
    """Frames between two evaluations; 0 turns them off [default: 100,000 in the first million
    frames, then 1,000,000]."""
    eval_episodes: int = 10
    """Games in an evaluation."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run is made of."""

    game: str = "pong"
    """Atari game (pong, Pong, ALE/Pong-v5) or id of a Gymnasium environment (CartPole-v1)."""
    agent: Annotated[str, tyro.conf.arg(help=AGENT_HELP)] = "ebu"
    preset: str = "default"
    """Starting point of all settings: default, or paper (those of the EBU paper's code)."""
    frames: int = 10_000_000
    """Emulator frames to train for (4 per agent step on Atari). May grow when a run goes on."""
    seed: int = 0
    """Seed of everything random in the run."""
    run_dir: Path | None = None
    """Where the run lives [default: runs/GAME-AGENT-PRESET-seedSEED]. One that is there goes on."""
    protocol: str = "paper"
    """paper (no sticky actions, a lost life ends a segment) or machado (sticky actions)."""
    train_noops: int = 30
    """Up to this many no-ops at the start of a training game; evaluation follows the protocol."""
    life_loss_ends_segment: bool | None = None
    """Whether a lost life ends a segment as a game's end does [default: as the protocol says]."""
    num_envs: int = 8
    """Environments played side by side."""
    replay_capacity: int = 1_000_000
    """Transitions in the replay memory; 7 kB each on Atari."""
    log_every_frames: int = 10_000
    """Frames between two lines of metrics."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints; changes nothing in the run."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Arithmetic of the networks; weights, targets and losses are float32 always. auto: bfloat16
    where the device has instructions for it."""
    threads: int = 0
    """Threads of torch and of the emulators; 0 takes one for each processor core."""
    overlap: bool = True
    """Let the emulators play while the learner learns; changes nothing in the run but its speed."""
    deterministic: bool = False
    """On a GPU, take only operations that give the same bits every time; a CPU always does."""
    profile: bool = False
    """Write a trace of some steps to RUN_DIR/profile, for TensorBoard or Perfetto."""
    distill: tuple[str, ...] | None = None
    """Networks that learn beside the agent to play as its best evaluation did (net2 net3); they go
    to RUN_DIR/students and change nothing in the run."""
    method: AgentConfig = field(default_factory=AGENTS["ebu"].config_type)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


DEFAULT = TrainConfig()

PAPER = replace(
    DEFAULT,
    preset="paper",
    train_noops=0,
    num_envs=1,
    method=replace(DEFAULT.method, learning_starts=50_000),
    learner=replace(
        DEFAULT.learner,
        output_scale=1.0,
        optimizer="rmsprop",
        learning_rate=2.5e-4,
        optimizer_epsilon=0.01,
        loss_reduction="sum",
        target_sync_updates=10_000,
    ),
    exploration=replace(
        DEFAULT.exploration,
        epsilon_end=0.1,
        epsilon_decay_steps=1_000_000,
        random_start_actions=4,
    ),
    evaluation=EvaluationConfig(eval_every_frames=250_000, eval_episodes=30),
)

PRESETS = {"default": DEFAULT, "paper": PAPER}

NOT_PART_OF_THE_RUN = frozenset({"run_dir", "checkpoint_minutes", "overlap", "profile"})
"""Settings that change nothing in what a run computes."""


def parse_arguments(args: Sequence[str]) -> TrainConfig:
    """Flags to a checked configuration; the preset they name gives the defaults.

    Raises `UsageError` with one line for anything that cannot be run.
    """
    preset, agent = _value_of("--preset", args, "default"), _value_of("--agent", args, "ebu")
    one_of("--preset", preset, PRESETS)
    one_of("--agent", agent, AGENTS)
    config = parse(
        TrainConfig,
        args,
        default=for_agent(PRESETS[preset], agent),
        prog="train.py" if agent == DEFAULT.agent else f"train.py --agent {agent}",
        description=(
            "Train an agent on an Atari game. The same command on the same run directory goes on "
            "where it stopped."
        ),
    )
    _check(config)
    return config


def for_agent(preset: TrainConfig, agent: str) -> TrainConfig:
    """A preset with the settings of another agent: its own defaults where the preset has none."""
    method, usual = flat(preset.method), flat(DEFAULT.method)
    different = {name: value for name, value in method.items() if value != usual[name]}
    return replace(preset, agent=agent, method=AGENTS[agent].config_type(**different))


def _value_of(flag: str, args: Sequence[str], default: str) -> str:
    """The last value given to a flag."""
    value = default
    for position, argument in enumerate(args):
        name, separator, joined = argument.partition("=")
        if name == flag:
            value = joined if separator else "".join(args[position + 1 : position + 2])
    return value


def _check(config: TrainConfig) -> None:
    learner, exploration = config.learner, config.exploration
    config.method.check()
    one_of("--protocol", config.protocol, PROTOCOLS)
    students = config.distill or ()
    for name in students:
        try:
            architecture(name)
        except UsageError as error:
            raise UsageError(f"--distill: {error}") from None
    if len(set(students)) < len(students):
        raise UsageError(f"--distill {' '.join(students)}: name each once")
    device_named(config.device)
    positive(
        {
            "--frames": config.frames,
            "--num-envs": config.num_envs,
            "--replay-capacity": config.replay_capacity,
            "--log-every-frames": config.log_every_frames,
            "--checkpoint-minutes": config.checkpoint_minutes,
            "--output-scale": learner.output_scale,
            "--learning-rate": learner.learning_rate,
            "--optimizer-epsilon": learner.optimizer_epsilon,
            "--target-sync-updates": learner.target_sync_updates,
            "--eval-episodes": config.evaluation.eval_episodes,
        }
    )
    not_negative(
        {
            "--seed": config.seed,
            "--threads": config.threads,
            "--train-noops": config.train_noops,
            "--epsilon-decay-steps": exploration.epsilon_decay_steps,
            "--random-start-actions": exploration.random_start_actions,
            "--eval-every-frames": config.evaluation.eval_every_frames or 0,
        }
    )
    shares(
        {
            "--epsilon-start": exploration.epsilon_start,
            "--epsilon-end": exploration.epsilon_end,
        }
    )


def flat(config: Any) -> dict[str, Any]:
    """Every setting by the name of its flag."""
    settings: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            settings |= flat(value)
        else:
            settings[entry.name] = str(value) if isinstance(value, Path) else value
    return settings
    at_most(
        {
            "--num-envs": (config.num_envs, 10_000),
            "--threads": (config.threads, 10_000),
            "--train-noops": (config.train_noops, 10_000),
            "--eval-episodes": (config.evaluation.eval_episodes, 1_000_000),
        }
    )
