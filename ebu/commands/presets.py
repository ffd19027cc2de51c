"""Every setting of a training run, the presets, and what cannot be run."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents import AGENTS, AgentConfig, LearnerConfig
from agents.architectures import architecture
from agents.ebu import EbuConfig
from ebu.errors import UsageError
from ebu.run.cli import at_most, device_named, not_negative, one_of, parse, positive, shares
from ebu.run.directory import CONFIG, read_config
from ebu.run.machine import AUTOMATIC, automatic_settings
from ebu.schedules import ExplorationConfig
from envs import is_atari
from envs.games import list_games
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
    """Frames to train for: 4 per agent step on Atari, 1 in a Gymnasium environment; 400k, 10M. May
    grow when a run is resumed."""
    seed: int = 0
    """Seed of everything random in the run."""
    run_dir: Path | None = None
    """Run directory; an existing one is resumed [default: runs/GAME-AGENT-PRESET-seedSEED]."""
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

# Rewards are raw, and an episode that ends well is long: a Huber loss that is linear from errors
# of 1 would fit the median of the targets, and never learn what the few last steps are worth.
GYMNASIUM = replace(
    DEFAULT,
    frames=50_000,
    train_noops=0,
    replay_capacity=100_000,
    threads=1,
    method=EbuConfig(
        batch_size=64,
        mix_segments=16,
        updates_per_step=0.5,
        learning_starts=1_000,
        clip_rewards=False,
    ),
    learner=replace(
        DEFAULT.learner,
        network="32-32-32/64",
        learning_rate=2e-3,
        huber_delta=100.0,
        target_sync_updates=50,
        average_updates=2_000,
    ),
    exploration=replace(DEFAULT.exploration, epsilon_decay_steps=5_000),
    evaluation=EvaluationConfig(eval_every_frames=10_000),
)
"""The default preset for a Gymnasium environment."""

PRESETS = {"default": DEFAULT, "paper": PAPER}

NOT_PART_OF_THE_RUN = frozenset({"run_dir", "checkpoint_minutes", "overlap", "profile"})
"""Settings that change nothing in what a run computes."""


@dataclass(frozen=True)
class Arguments:
    """What train.py is told."""

    resume: Path | None = None
    """Run directory to train further. Its config.json holds every setting; --frames may grow, and
    what is not part of the run (--checkpoint-minutes, --overlap, --profile), or was chosen by the
    program (--device, --threads, --precision), may be given again."""
    list_games: bool = False
    """Print what --game takes, and exit."""
    run: TrainConfig = field(default_factory=TrainConfig)


OTHER_GAMES = """
The second column: sets of games, for study.py --games.

--game also takes titles and ids (Pong, "Ms. Pac-Man", ALE/Pong-v5), and every Gymnasium environment
with discrete actions and image or vector observations: CartPole-v1, ebu/Maze-v0, or one of your
own, my_module:MyEnv-v0, from a module that Python finds."""

WITH_RESUME = frozenset({"resume", "help", "frames"}) | NOT_PART_OF_THE_RUN | AUTOMATIC.keys()
"""Flags that may be given together with --resume; --run-dir is refused, since --resume names it."""


def parse_arguments(args: Sequence[str]) -> TrainConfig:
    """Flags to a checked configuration; the preset they name gives the defaults.

    --help and --list-games print and exit with 0.

    Raises `UsageError` with one line for anything that cannot be run.
    """
    run_dir = _value_of("--resume", args)
    if run_dir is not None:
        _check_with_resume(run_dir, args)
        args = [*flags_of_run(Path(run_dir)), *args, f"--run-dir={run_dir}"]
    preset = _value_of("--preset", args) or DEFAULT.preset
    agent = _value_of("--agent", args) or DEFAULT.agent
    one_of("--preset", preset, PRESETS)
    one_of("--agent", agent, AGENTS)
    game = _value_of("--game", args) or DEFAULT.game
    _check_owners(agent, args)
    arguments = parse(
        Arguments,
        args,
        default=Arguments(run=for_agent(_preset_for(game, preset), agent)),
        prog="train.py" if agent == DEFAULT.agent else f"train.py --agent {agent}",
        description=(
            "Train an agent on an Atari game. Run the same command again to resume, or name the "
            "run directory with --resume."
        ),
    )
    if arguments.list_games:
        print(f"{list_games()}\n{OTHER_GAMES}")
        raise SystemExit(0)
    config = arguments.run
    _check(config)
    return config


def _preset_for(game: str, preset: str) -> TrainConfig:
    return GYMNASIUM if preset == "default" and not is_atari(game) else PRESETS[preset]


def gymnasium_defaults(config: TrainConfig) -> str:
    """One line on the settings that a run has because its game is a Gymnasium environment."""
    line = f"{config.game} is a Gymnasium environment: evaluated without random actions"
    if config.preset != "default":
        return line
    atari, own = flat(for_agent(DEFAULT, config.agent)), flat(for_agent(GYMNASIUM, config.agent))
    settings = {
        name: value for name, value in flat(config).items() if value == own[name] != atari[name]
    }
    return f"{line}; defaults of its own: {' '.join(flags_of(settings, atari))}"


def for_agent(preset: TrainConfig, agent: str) -> TrainConfig:
    """A preset with the settings of another agent: its own defaults where the preset has none."""
    method, usual = flat(preset.method), flat(DEFAULT.method)
    kind = AGENTS[agent].config_type
    known = {entry.name for entry in dataclasses.fields(kind)}
    different = {
        name: value for name, value in method.items() if name in known and value != usual[name]
    }
    return replace(preset, agent=agent, method=kind(**different))


def flags_of_run(run_dir: Path) -> list[str]:
    """The flags that a run was started with, and nothing of them left to the defaults.

    Raises `UsageError` for what train.py of this version did not start, `EbuError` for a damaged
    config.json.
    """
    config = read_config(run_dir)
    settings = config["settings"]
    preset, agent = settings.get("preset"), settings.get("agent")
    if preset not in PRESETS or agent not in AGENTS:
        raise UsageError(
            f"--resume {run_dir}: train.py did not start it, as its {CONFIG} says: name a run"
        )
    usual = flat(for_agent(_preset_for(str(settings.get("game")), preset), agent))
    missing = usual.keys() - settings.keys() - NOT_PART_OF_THE_RUN
    unknown = settings.keys() - usual.keys()
    if missing or unknown:
        differing = [*(f"no {name}" for name in sorted(missing)), *sorted(unknown)]
        raise UsageError(
            f"--resume {run_dir}: it was started by a version with other settings "
            f"({', '.join(differing)} in its {CONFIG}): continue it with that version, or start a "
            "new run"
        )
    automatic = {name: AUTOMATIC[name] for name in automatic_settings(config)}
    return flags_of({**settings, **automatic}, usual)


def flags_of(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Settings as flags of train.py; `usual` are those that their agent and preset have."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(usual.get(name), bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            flags += [f"--{flag}", *map(str, value)]
        elif value is not None or usual.get(name) is not None:
            flags.append(f"--{flag}={value}")
    return flags


def _named_in(args: Sequence[str]) -> dict[str, str]:
    """The settings whose flags are among these arguments, each with its flag as it was typed."""
    typed = [argument.partition("=")[0] for argument in args if argument.startswith("--")]
    return {flag[2:].removeprefix("no-").replace("-", "_"): flag for flag in typed}


def _check_with_resume(run_dir: str, args: Sequence[str]) -> None:
    if not run_dir:
        raise UsageError("--resume needs the directory of a run, for instance --resume runs/pong")
    for name, flag in _named_in(args).items():
        if name not in WITH_RESUME or name == "run_dir":
            raise UsageError(
                f"--resume takes every setting from the run: leave out {flag} (--frames may grow; "
                "see train.py --help)"
            )


def _check_owners(agent: str, args: Sequence[str]) -> None:
    """Raise `UsageError` for a flag that is another agent's."""
    own = flat(AGENTS[agent].config_type())
    for name, flag in _named_in(args).items():
        owners = [other for other in AGENTS if name in flat(AGENTS[other].config_type())]
        if owners and name not in own:
            raise UsageError(
                f"{flag} is a flag of {' and '.join(owners)}, not of {agent}: add --agent "
                f"{owners[0]}, or leave it out (see train.py --agent {agent} --help)"
            )


def _value_of(flag: str, args: Sequence[str]) -> str | None:
    """The last value given to a flag, None without the flag, empty if its value is missing."""
    value = None
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
            "--huber-delta": learner.huber_delta,
            "--target-sync-updates": learner.target_sync_updates,
            "--eval-episodes": config.evaluation.eval_episodes,
        }
    )
    at_most(
        {
            "--num-envs": (config.num_envs, 10_000),
            "--threads": (config.threads, 10_000),
            "--train-noops": (config.train_noops, 10_000),
            "--eval-episodes": (config.evaluation.eval_episodes, 1_000_000),
        }
    )
    not_negative(
        {
            "--seed": config.seed,
            "--average-updates": learner.average_updates,
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
