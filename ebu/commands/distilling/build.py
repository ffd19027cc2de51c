"""Build what distill.py runs: a pipeline for each game, and the locked output directory."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import TrainedAgent
from agents.architectures import LADDER
from agents.distillation.dataset import saved_states
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import file_name
from agents.distillation.settings import (
    KEGNET,
    LOSSES,
    MAY_CHANGE,
    MIXED,
    NOISE,
    PLAY,
    REPLAY,
    SOURCES,
    SYNTHETIC,
    DistillConfig,
    StudentSpec,
    flag_of,
    load_experimental,
    student_outputs,
)
from agents.distillation.students import digest_of, num_parameters, student_of
from agents.distillation.teachers import Teacher, check_plays, load_teachers
from agents.foreign.flags import PolicyFlags
from agents.foreign.formats import is_foreign
from agents.foreign.policy import Called
from agents.networks import NatureTorso, QNetwork
from ebu.commands.policies import load_policy
from ebu.commands.scoring import evaluator_for, variant_of
from ebu.commands.trust import check_trust
from ebu.errors import EbuError, UsageError
from ebu.evaluation import seeds_of
from ebu.host_memory import available_bytes
from ebu.run.directory import differences, open_run_directory
from ebu.run.machine import Machine
from ebu.run.progress import say
from ebu.run.settings import flat
from envs import UnknownGameError
from envs.protocols import PROTOCOLS

GAMES = "games"
"""The folder of the games' own directories, where there are several games."""
TYPED_PATHS = frozenset({"run_dirs", "states_from"})
WEIGHTS_OF_TEACHERS = frozenset({"teacher_frames", "teacher_weights", "teacher_digests"})


def check_teachers(
    config: DistillConfig, specs: Sequence[StudentSpec], device: torch.device
) -> dict[str, list[Teacher]]:
    """Load the teachers by their games, in the order of the runs.

    Raises `UsageError` for what is no teacher, and for students that cannot be distilled from these
    teachers together; `EbuError` if a run holds no whole weights, and for damaged files.
    """
    foreign = {path for path in config.run_dirs if is_foreign(path)}

    def load(path: Path) -> TrainedAgent:
        # What is said of a policy from elsewhere is not said of the runs beside it.
        flags = PolicyFlags() if foreign and path not in foreign else config.policy
        return load_policy(path, flags, device, weights=config.weights, as_teacher=True)

    games = load_teachers(config, device, load)
    for members in games.values():
        for member in members:
            if member.run_dir not in foreign:
                check_trust(member.run_dir, member.agent.config["settings"], config.trust_env)
    if config.states_from == REPLAY and foreign:
        raise UsageError(
            f"--states-from {REPLAY} reads the memory of a run, and a policy from elsewhere has "
            "none: collect in play"
        )
    if any(len(members) > 1 for members in games.values()):
        load_experimental("ensemble").check(config, specs)
    if len(games) > 1:
        if config.int8_aware:
            raise UsageError("--int8-aware is for one game: leave it out")
        firsts = {game: members[0].agent for game, members in games.items()}
        load_experimental("several games").check(config, firsts)
    return games


def leave_out_large(config: DistillConfig, games: Mapping[str, Sequence[Teacher]]) -> DistillConfig:
    """Leave out what --smallest would try, if nothing is named, that is no smaller than a teacher.

    Raises `UsageError` where nothing is left.
    """
    # The same students, if they are named, are another tuple.
    if config.students is not LADDER:
        return config

    def is_smaller(name: str, members: Sequence[Teacher]) -> bool:
        networks = [member.agent.network for member in members]
        if any(isinstance(network, Called) for network in networks):
            # Its size is not known.
            return True
        student = student_of(members[0].agent, name, generator=torch.Generator())
        return num_parameters(student) < sum(map(num_parameters, networks))

    found = [name for name in LADDER if all(is_smaller(name, each) for each in games.values())]
    if not found:
        raise UsageError(
            f"--smallest: none of {', '.join(LADDER)} has fewer parameters than the teacher: name "
            "smaller networks with --students"
        )
    if left_out := [name for name in LADDER if name not in found]:
        say(f"--smallest: {', '.join(left_out)} left out: not smaller than the teacher")
    return replace(config, students=tuple(found))


def build_pipelines(
    config: DistillConfig, games: Mapping[str, Sequence[Teacher]], should_stop: Callable[[], bool]
) -> dict[str, Pipeline]:
    """A pipeline for each game, with its first teacher; several games have their own directories.

    Raises `UsageError` for a game that cannot be played.
    """
    configs = {
        game: replace(
            config,
            run_dirs=tuple(dict.fromkeys(member.run_dir for member in members)),
            out=config.out / GAMES / file_name(game),
        )
        if len(games) > 1
        else config
        for game, members in games.items()
    }
    return {
        game: _build_pipeline(configs[game], members[0].agent, should_stop)
        for game, members in games.items()
    }


def _build_pipeline(
    config: DistillConfig, teacher: TrainedAgent, should_stop: Callable[[], bool]
) -> Pipeline:
    run_dir, settings = config.run_dirs[0], teacher.config["settings"]
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
            variant=variant_of(settings),
        )
    except KeyError as error:
        raise EbuError(f"{run_dir}: its config.json lacks {error}: restore it") from error
    try:
        env = evaluator.new_env(1, 0)
    except (UnknownGameError, ValueError) as error:
        raise UsageError(f"{run_dir} was trained on {game}: {error}") from error
    with contextlib.closing(env):
        check_plays(teacher, run_dir, env)
    ends = settings.get("life_loss_ends_segment")
    return Pipeline(
        config=config,
        teacher=teacher,
        teacher_dir=run_dir,
        evaluator=evaluator,
        life_loss_ends_value=protocol.life_loss_ends_segment if ends is None else bool(ends),
        should_stop=should_stop,
    )


def games_of(config: DistillConfig, teacher: TrainedAgent) -> int:
    """Games of every score in this teacher's game."""
    return config.games or PROTOCOLS[teacher.config["settings"]["protocol"]].eval_episodes


def check_students(
    config: DistillConfig, teacher: TrainedAgent, specs: Sequence[StudentSpec], *, games: int
) -> dict[str, str]:
    """The names of the students' networks.

    Raises `UsageError` for students that this teacher cannot have, and where the states of all
    games would not fit in memory.
    """
    networks = {
        name: student_of(teacher, name, generator=torch.Generator()).name
        for name in config.students
    }
    _check_inside(config, teacher, specs)
    kinds = {student_outputs(spec.weights, config.outputs) for spec in specs}
    if "values" in kinds and teacher.outputs != "values":
        raise UsageError(
            f"the agent in {config.run_dirs[0]} is a policy, which has no values to teach: choose "
            "kl, hard or centred for --loss and --baselines, and no --outputs values"
        )
    if config.states_from in SOURCES and config.states_from != KEGNET:
        environment = teacher.config["environment"]
        frame = (
            math.prod(environment["frame_shape"]) * np.dtype(environment["frame_dtype"]).itemsize
        )
        # All parts, and those of one game once more while they are joined.
        needed = (games + 1) * config.states * frame
        available = available_bytes(torch.device("cpu"))
        if available is not None and needed > available:
            raise UsageError(
                f"--states {config.states} takes {needed / 1e9:.2f} GB of memory but "
                f"{available / 1e9:.2f} GB are free: at most "
                f"{config.states * available // needed} states fit"
            )
    return networks


def _check_inside(
    config: DistillConfig, teacher: TrainedAgent, specs: Sequence[StudentSpec]
) -> None:
    """Raise `UsageError` for what the inside of the teacher, or its states, cannot give.

    Layers are compared of networks with three convolutions alone, and states that are made or
    shifted are images.
    """
    where, game = config.run_dirs[0], teacher.config["settings"]["game"]
    used = {name for spec in specs for name, weight in spec.weights.items() if weight}
    network = teacher.network
    whole = isinstance(network, QNetwork) and isinstance(network[0], NatureTorso)
    for name in sorted(used):
        if LOSSES[name].layers and not whole:
            raise UsageError(
                f"{name} compares layers, and {where} has no three convolutions of this project: "
                f"leave --{flag_of(name)} out"
            )
    is_called = any(isinstance(module, Called) for module in network.modules())
    if config.states_from == KEGNET and is_called:
        raise UsageError(
            f"--states-from {KEGNET} needs gradients, which {where} does not give: choose {PLAY}, "
            f"{NOISE} or {MIXED}"
        )
    if (source := Path(config.states_from)).is_dir():
        saved_states(source)
    if len(teacher.config["environment"]["frame_shape"]) == 2:
        return
    if config.states_from in SYNTHETIC:
        raise UsageError(f"--states-from {config.states_from} makes images, and {game} shows none")
    if config.refine_labels:
        raise UsageError(f"--refine-labels shifts images, and {game} shows none: leave it out")


def paths_from_out(config: DistillConfig) -> dict[str, Any]:
    """The directories that are read, relative to the output directory.

    So they are the same from every working directory, and where all are moved together.
    """
    out = config.out.resolve()

    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), out)

    source = Path(config.states_from)
    return {
        # A function is found by its name, wherever that is.
        "run_dirs_from_out": [
            relative(path) if path.exists() else str(path) for path in config.run_dirs
        ],
        "states_from_out": relative(source) if source.is_dir() else config.states_from,
    }


@contextlib.contextmanager
def open_output(
    config: DistillConfig,
    games: Mapping[str, Sequence[Teacher]],
    machine: Machine,
    before: dict[str, Any] | None,
    *,
    same_teachers: bool = True,
) -> Iterator[None]:
    """Create or resume the output directory under an exclusive lock.

    | argument | meaning |
    | --- | --- |
    | before | its config.json, if there was one |
    | same_teachers | refuse teachers whose weights are not those that it was started with |

    Raises `UsageError` for a directory that was started with other settings, or is in use.
    """
    teachers = [member.agent for members in games.values() for member in members]
    digests = [teacher.config["settings"].get("digest") for teacher in teachers]
    unsaid = {name for name, value in flat(config.policy).items() if value in (None, False)}
    description = {
        "settings": {
            **{name: value for name, value in flat(config).items() if name not in unsaid},
            "games": max(games_of(config, teacher) for teacher in teachers),
            "run_dirs": [str(run_dir) for run_dir in config.run_dirs],
            "teacher_frames": [teacher.frames for teacher in teachers],
            "teacher_weights": [digest_of(teacher.network)[:12] for teacher in teachers],
            **({"teacher_digests": digests} if any(digests) else {}),
            **(paths := paths_from_out(config)),
        },
        "automatic": machine.automatic,
        "environment": teachers[0].config["environment"],
    }
    may_change = MAY_CHANGE | set(machine.automatic)
    recorded = {} if before is None else before["settings"]
    # Earlier versions recorded only paths as they were typed, and no games if none were typed.
    may_change |= TYPED_PATHS if paths.keys() <= recorded.keys() else paths.keys()
    if recorded.get("games", 0) is None:
        may_change |= {"games"}
    # What they had no setting for is as they did it by default.
    may_change |= {
        field.name
        for field in fields(config)
        if recorded and field.name not in recorded and getattr(config, field.name) == field.default
    }
    # They did not record weights either, nor the modules of functions.
    may_change |= {"teacher_weights", "teacher_digests"} - recorded.keys()
    if not same_teachers:
        may_change |= WEIGHTS_OF_TEACHERS
    elif before is not None:
        _check_weights(config, before, description, may_change)
    with open_run_directory(
        config.out,
        description,
        may_change=may_change,
        may_grow=config.may_grow,
        flag="--out",
    ):
        yield


def _check_weights(
    config: DistillConfig,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: frozenset[str],
) -> None:
    """Raise `UsageError` where nothing differs from the settings before but the teachers' weights.

    Files that have changed are named by their digests, as any other setting.
    """
    rest = may_change | WEIGHTS_OF_TEACHERS - {"teacher_digests"}

    def found(may_change: frozenset[str]) -> list[str]:
        settings = before["settings"], now["settings"]
        return differences(*settings, may_change=may_change, may_grow=config.may_grow)

    if found(may_change) and not found(rest):
        raise UsageError(
            f"{' '.join(map(str, config.run_dirs))} has other weights than when {config.out} was "
            "started, whose states, scores and students are of those: choose another --out to "
            "distil it as it is now"
        )
