"""What a distillation's settings stand for: the teacher, and the procedure for its game."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from agents import TrainedAgent
from agents.distillation.experimental.ensembles import Member, load_members
from agents.distillation.experimental.kegnet import Bar
from agents.distillation.experimental.several_games import check_games
from agents.distillation.pipeline import Offline, Pupil, outputs_for
from agents.distillation.procedures import check_ensemble, check_single
from agents.distillation.records import file_name
from agents.distillation.settings import DistillConfig
from agents.distillation.sources import KEGNET, SOURCES
from agents.distillation.students import student_of
from agents.distillation.teachers import Examination, check_plays
from ebu.commands.scoring import evaluator_for
from ebu.errors import EbuError, UsageError
from ebu.evaluation import seeds_of
from ebu.memory import available_bytes
from envs import UnknownGameError
from envs.protocols import PROTOCOLS, Protocol

GAMES = "games"
"""Where, in the directory of several games, each has a directory of its own."""


def load_teachers(
    config: DistillConfig, pupils: Sequence[Pupil], device: torch.device
) -> dict[str, list[Member]]:
    """The teachers by their games, in the order of the runs that are named.

    Raises `UsageError` for what is no run, or one that plays by no pictures, and for teachers that
    cannot teach these students together; `EbuError` if a run holds no whole weights.
    """
    games = load_members(
        config.run_dirs, config.weights, device, all_learners=config.procedures.all_learners
    )
    if any(len(members) > 1 for members in games.values()):
        check_ensemble(config.students, [pupil.weights for pupil in pupils], config.outputs)
    if len(games) > 1:
        check_single(config.procedures, list(games), config.students)
        if config.from_scratch:
            raise UsageError(
                f"--from-scratch is for one game, and the runs are of {' and '.join(games)}: leave "
                "it out"
            )
        check_games({game: one.agent for game, (one, *_) in games.items()}, config.students)
    return games


def configs_of(
    config: DistillConfig, games: Mapping[str, Sequence[Member]]
) -> dict[str, DistillConfig]:
    """The settings of each game: its own runs; where there are several, its own directory."""
    if len(games) == 1:
        return dict.fromkeys(games, config)
    return {
        game: replace(
            config,
            run_dirs=tuple(dict.fromkeys(member.run_dir for member in members)),
            out=config.out / GAMES / file_name(game),
        )
        for game, members in games.items()
    }


def networks_of(
    config: DistillConfig, teacher: TrainedAgent, pupils: list[Pupil], *, games: int
) -> dict[str, str]:
    """The names of the students' networks.

    Raises `UsageError` for students that this teacher cannot have, and where their states, of so
    many games, would not fit in memory.
    """
    networks = {
        name: student_of(teacher, name, generator=torch.Generator()).name
        for name in config.students
    }
    kinds = {outputs_for(pupil.weights, config.outputs) for pupil in pupils}
    if "values" in kinds and teacher.outputs != "values":
        raise UsageError(
            f"the agent in {config.run_dirs[0]} is a policy, which has no values to teach: choose "
            "kl, hard or centred for --loss and --baselines, and no --outputs values"
        )
    if config.states_from in SOURCES and config.states_from != KEGNET:
        _check_memory(config, teacher, games)
    return networks


def _check_memory(config: DistillConfig, teacher: TrainedAgent, games: int) -> None:
    height, width = teacher.config["environment"]["frame_shape"]
    # All parts, and those of one game once more while they are joined.
    needed = (games + 1) * config.states * height * width
    available = available_bytes(torch.device("cpu"))
    if available is not None and needed > available:
        raise UsageError(
            f"--states {config.states} takes {needed / 1e9:.2f} GB of memory but "
            f"{available / 1e9:.2f} GB are free: at most "
            f"{config.states * available // needed} states fit"
        )


def games_of(config: DistillConfig, teacher: TrainedAgent) -> int:
    """Games that everything of this teacher's game is scored in."""
    return config.games or PROTOCOLS[teacher.config["settings"]["protocol"]].eval_episodes


def procedure_for(
    config: DistillConfig,
    teacher: TrainedAgent,
    *,
    should_stop: Callable[[], bool],
    bar: Bar,
    say: Callable[[str], None],
) -> Offline:
    """The procedure for this teacher's game, on the machine that the settings name.

    Raises `UsageError` where it cannot be played.
    """
    run_dir = config.run_dirs[0]
    settings = teacher.config["settings"]
    try:
        game, protocol = settings["game"], PROTOCOLS[settings["protocol"]]
        # The games that evaluate.py plays with the same seed.
        evaluator = evaluator_for(
            game,
            protocol,
            seeds=seeds_of(config.seed),
            episodes=games_of(config, teacher),
            final_epsilon=settings["epsilon_end"],
            random_start_actions=settings["random_start_actions"],
            threads=config.threads,
            device=teacher.device,
        )
    except KeyError as error:
        raise EbuError(f"{run_dir}: its config.json lacks {error}: restore it") from error
    examination = Examination(evaluator, protocol=protocol.name, seed=config.seed)
    make_games = evaluator.new_env
    try:
        env = make_games(1, 0)
    except (UnknownGameError, ValueError) as error:
        raise UsageError(f"{run_dir} was trained on {game}: {error}") from error
    with contextlib.closing(env):
        check_plays(teacher, run_dir, env)
    return Offline(
        out=config.out,
        teacher=teacher,
        teacher_dir=run_dir,
        examination=examination,
        make_games=make_games,
        life_loss_ends_value=_life_loss_ends_value(settings, protocol),
        teaching=config.teaching,
        loss=config.constants,
        temperature=config.temperature,
        outputs=config.outputs,
        seed=config.seed,
        precision=config.precision,
        checkpoint_minutes=config.checkpoint_minutes,
        should_stop=should_stop,
        bar=bar,
        say=say,
    )


def _life_loss_ends_value(settings: dict[str, Any], protocol: Protocol) -> bool:
    """Whether the teacher's values end with a life: as its run was told, else as the protocol."""
    told = settings.get("life_loss_ends_segment")
    return protocol.life_loss_ends_segment if told is None else bool(told)
