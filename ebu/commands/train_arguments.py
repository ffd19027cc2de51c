"""Parse and check the flags of train.py, and write settings as flags, without loading torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from agents.architectures import architecture
from agents.settings import AGENTS, check_learner
from ebu.commands.game_names import about_game
from ebu.commands.presets import (
    AUTO,
    DEFAULT,
    FEW_FRAMES,
    GYMNASIUM,
    PRESETS,
    TrainConfig,
    for_agent,
    preset_for,
    with_network,
)
from ebu.commands.trust import add_working_directory, check_trust, modules_in
from ebu.errors import EbuError, UsageError
from ebu.run.cli import parse, refuse_empty
from ebu.run.directory import (
    AUTOMATIC,
    CONFIG,
    NOT_PART_OF_THE_RUN,
    automatic_settings,
    read_config,
)
from ebu.run.hints import program_name
from ebu.run.reading import shorten
from ebu.run.settings import flat, one_of
from envs import UnknownGameError, check_game, is_atari
from envs.boundary import parse_args
from envs.games import list_games
from envs.protocols import PROTOCOLS


@dataclass(frozen=True)
class Arguments:
    """The flags of train.py."""

    resume: Path | None = None
    """Run directory to train further. Its config.json holds every setting; --frames may grow, and
    what is not part of the run (--checkpoint-minutes, --overlap, --profile), or was chosen by the
    program (--device, --threads, --precision), may be given again."""
    trust_env: bool = False
    """With --resume: import the module that the run's environment is from (module:Env-v0)."""
    list_games: bool = False
    """Print what --game takes, and exit."""
    run: TrainConfig = field(default_factory=TrainConfig)


OTHER_GAMES = """
The second column: sets of games, for study.py --games.

--game also takes titles and ids (Pong, "Ms. Pac-Man", ALE/Pong-v5), and every Gymnasium environment
with discrete actions and image or vector observations: CartPole-v1, ebu/Maze-v0, or one of your
own, my_module:MyEnv-v0, from a module that Python finds."""

DefaultT = TypeVar("DefaultT", bound=str | None)

_MAY_CHANGE = NOT_PART_OF_THE_RUN | (AUTOMATIC.keys() - {"num_envs"})
WITH_RESUME = frozenset({"resume", "help", "frames", "trust_env"}) | _MAY_CHANGE
"""Flags that may be given together with --resume; --run-dir is refused, since --resume names it."""


def parse_arguments(args: Sequence[str]) -> TrainConfig:
    """Flags to a checked configuration; the preset they name gives the defaults.

    --help and --list-games print and exit with 0.

    Raises `UsageError` with one line for anything that cannot be run.
    """
    run_dir = _value_of("--resume", args, None)
    if run_dir is not None:
        refuse_empty(args, "train.py")
        _check_with_resume(run_dir, args)
        args = [*flags_of_run(Path(run_dir)), *args, f"--run-dir={run_dir}"]
    preset = _value_of("--preset", args, DEFAULT.preset)
    one_of("--preset", preset, PRESETS)
    agent = _value_of("--agent", args, PRESETS[preset].agent)
    one_of("--agent", agent, AGENTS)
    game = _value_of("--game", args, None) or DEFAULT.game
    _check_owners(agent, args)
    arguments = parse(
        Arguments,
        args,
        default=Arguments(run=for_agent(preset_for(game, preset), agent)),
        prog="train.py" if agent == DEFAULT.agent else f"train.py --agent {agent}",
        description=(
            "Train an agent on an Atari game or a Gymnasium environment. Run the same command "
            "again to resume, or name the run directory with --resume."
        ),
    )
    if arguments.list_games:
        print(f"{list_games()}\n{OTHER_GAMES}")
        raise SystemExit(0)
    settings = flat(arguments.run)
    if run_dir is None:
        if arguments.trust_env:
            raise UsageError(
                "--trust-env says nothing without --resume, since what is typed is imported: leave "
                "it out"
            )
        add_working_directory(modules_in(settings))
    else:
        _check_grows(Path(run_dir), settings["frames"])
        check_trust(Path(run_dir), settings, arguments.trust_env)
    _check(arguments.run)
    return arguments.run


def without_effect(config: TrainConfig) -> list[str]:
    """The flags of settings that differ from the preset's and change nothing in this run."""
    usual = for_agent(preset_for(config.game, config.preset), config.agent)
    ours, theirs = flat(config), flat(usual)
    return [
        f"--{name.replace('_', '-')} {ours[name]} changes nothing {why}"
        for name, why in _ineffective(config).items()
        if ours[name] != theirs[name]
    ]


def _ineffective(config: TrainConfig) -> dict[str, str]:
    """The settings that change nothing in this run, and why."""
    where = {}
    if not is_atari(config.game):
        where["train_noops"] = where["life_loss_ends_segment"] = "in a Gymnasium environment"
    if config.learner.target_average:
        where["target_sync_updates"] = "with --target-average"
    if config.agent == "adaptive_ebu":
        where["average_updates"] = "with adaptive_ebu, whose best learner plays"
    return where


def unlike_the_protocol(config: TrainConfig) -> list[str]:
    """What of a run's settings is not as the agents of its protocol are compared."""
    if config.protocol != FEW_FRAMES.protocol:
        return []
    found, protocol = [], PROTOCOLS[config.protocol]
    if config.frames != FEW_FRAMES.frames:
        found.append(f"after {FEW_FRAMES.frames:,} frames, not {config.frames:,}: --frames 400k")
    if config.train_noops != protocol.train_noop_max:
        found.append(
            f"with up to {protocol.train_noop_max} no-ops in training, not {config.train_noops}: "
            f"--train-noops {protocol.train_noop_max}"
        )
    ends = protocol.life_loss_ends_segment
    if config.life_loss_ends_segment not in {None, ends}:
        found.append("with segments that end with a life: leave out --life-loss-ends-segment")
    return [f"under {config.protocol} agents are compared {each}" for each in found]


def gymnasium_defaults(config: TrainConfig, frame_shape: Sequence[int]) -> str:
    """One line on the settings that a run has because its game is a Gymnasium environment."""
    line = f"{config.game} is a Gymnasium environment: evaluated without random actions"
    if first := config.exploration.random_start_actions:
        line += f" after the first {first}"
    if config.preset != "default":
        return line
    usual = replace(for_agent(GYMNASIUM, config.agent), game=config.game)
    ours, own = (flat(with_network(each, frame_shape)) for each in (config, usual))
    atari = flat(for_agent(DEFAULT, config.agent))
    settings = {
        name: value
        for name, value in ours.items()
        if value == own[name] != atari[name] and name not in {"game", *_ineffective(config)}
    }
    return f"{line}; defaults of its own: {' '.join(flags_of(settings, atari))}"


def flags_of_run(run_dir: Path, *, earlier: bool = False) -> list[str]:
    """The flags that a run was started with, and nothing of them left to the defaults.

    `earlier`: of a result that an earlier version may have written. What was no setting then is
    left to its default, which changes nothing.

    Raises `UsageError` for what train.py of this version did not start, `EbuError` for a damaged
    config.json.
    """
    config = read_config(run_dir)
    settings = config["settings"]
    preset, agent = settings.get("preset"), settings.get("agent")
    if preset not in PRESETS or agent not in AGENTS:
        raise UsageError(
            f"{run_dir}: its {CONFIG} is of no run of train.py (preset {preset}, agent {agent}): "
            "name a run, or restore it"
        )
    usual = flat(for_agent(preset_for(str(settings.get("game")), preset), agent))
    # A setting that is off is as one that is not known yet.
    known = {name for name, value in usual.items() if value is not None}
    missing = set() if earlier else known - settings.keys() - NOT_PART_OF_THE_RUN
    unknown = settings.keys() - usual.keys()
    if missing or unknown:
        differing = [*(f"no {name}" for name in sorted(missing)), *sorted(unknown)]
        raise UsageError(
            f"{run_dir}: it was started by a version with other settings "
            f"({', '.join(differing)} in its {CONFIG}): resume it with that version, or start a "
            "new run"
        )
    for name, value in settings.items():
        # It would be read as a flag of its own.
        if isinstance(value, list) and any(str(each).startswith("-") for each in value):
            raise EbuError(f"{run_dir / CONFIG} says {name} is {shorten(value)}: restore it")
    automatic = {name: AUTOMATIC[name] for name in automatic_settings(config)}
    # Asked for once: a later start continues the games exactly.
    once = {"fresh_games": False}
    return flags_of({**settings, **automatic, **once}, usual)


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
                f"see {program_name('train.py')} --help)"
            )


def _check_grows(run_dir: Path, frames: int) -> None:
    asked = read_config(run_dir)["settings"]["frames"]
    if frames < asked:
        raise UsageError(
            f"--frames {frames}: {run_dir} was started with {asked}, and a run only grows: leave "
            "--frames out, or give more"
        )


def _check_owners(agent: str, args: Sequence[str]) -> None:
    """Raise `UsageError` for a flag that is another agent's."""
    own = flat(AGENTS[agent])
    for name, flag in _named_in(args).items():
        owners = [other for other in AGENTS if name in flat(AGENTS[other])]
        if owners and name not in own:
            program = program_name("train.py")
            raise UsageError(
                f"{flag} is a flag of {', '.join(owners)}, not of {agent}: add --agent "
                f"{owners[0]}, or leave it out (see {program} --agent {agent} --help)"
            )


def _value_of(flag: str, args: Sequence[str], default: DefaultT) -> str | DefaultT:
    """The last value given to a flag, the default without it, empty if its value is missing."""
    value: str | DefaultT = default
    for position, argument in enumerate(args):
        name, separator, joined = argument.partition("=")
        if name == flag:
            value = joined if separator else "".join(args[position + 1 : position + 2])
    return value


def _check(config: TrainConfig) -> None:
    try:
        check_game(config.game)
    except UnknownGameError as error:
        raise UsageError(f"--game: {about_game(error)}") from None
    try:
        parse_args(config.env_args or ())
    except ValueError as error:
        raise UsageError(f"--env-args: {error}") from None
    if config.preset == "few_frames" and not is_atari(config.game):
        raise UsageError(f"--preset few_frames is for Atari: leave it out for {config.game}")
    config.method.check()
    config.learner.check()
    check_learner(config.method, config.learner)
    students = config.distill or ()
    network = {config.learner.network} - {AUTO}
    for flag, names in (("--network", network), ("--distill", students)):
        for name in names:
            try:
                architecture(name)
            except UsageError as error:
                raise UsageError(f"{flag}: {error}") from None
    if len(set(students)) < len(students):
        raise UsageError(f"--distill {' '.join(students)}: name each once")
