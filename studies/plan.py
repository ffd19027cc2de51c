"""What a study plays: its runs by game, agent and seed, and whether they can be played."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from agents import AGENTS
from ebu.commandline import device_named, one_of
from ebu.errors import EbuError, UsageError
from ebu.run_directory import read_config
from envs import UnknownGameError, is_atari, make_vector
from envs.games import GAME_SETS, canonical_game, shown
from envs.protocols import PROTOCOLS
from presets import NOT_PART_OF_THE_RUN, TrainConfig, flat, parse_arguments
from studies.runs import read_evaluation

# What the study itself says to train.py.
OURS = ("--game", "--agent", "--preset", "--frames", "--seed", "--run-dir")


@dataclass(frozen=True)
class StudyConfig:
    """What is played."""

    games: tuple[str, ...]
    """Sets of games (paper49, atari5, all57) and games, mixed as you like."""
    agents: tuple[str, ...] = ("ebu", "dqn")
    """Agents by the names that train.py knows."""
    seeds: int = 1
    """How many seeds: 3 means 0, 1 and 2."""
    seed_list: tuple[int, ...] = ()
    """These seeds instead."""
    frames: int = 10_000_000
    """Emulator frames of each run."""
    preset: str = "default"
    """default, or paper."""
    jobs: int = 1
    """Runs at a time. Each gets its share of the processor cores, unless -- --threads says more."""
    out: Path = Path("runs/study")
    """Holds the runs, a log of each, and results.csv."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of the study: its directory and its settings, as train.py will read them."""

    run_dir: Path
    config: TrainConfig
    flags: tuple[str, ...]

    def is_scored(self) -> bool:
        """Whether evaluate.py has played all games of the protocol with the final weights."""
        try:
            record = read_evaluation(self.run_dir)
            return (
                record is not None
                and record["trained_frames"] >= self.config.frames
                and record["protocol"] == self.config.protocol
                and record["games"] == PROTOCOLS[self.config.protocol].eval_episodes
            )
        except (EbuError, KeyError, TypeError):
            # Damaged: it is scored again.
            return False

    def recorded(self) -> dict[str, Any]:
        """The settings it was started with; none where it was not, or they cannot be read."""
        try:
            return dict(read_config(self.run_dir)["settings"])
        except EbuError:
            # If it is damaged, train.py says so when its turn comes.
            return {}

    def differences(self) -> list[str]:
        """What of the settings it was started with is another now, and may not be."""
        device = device_named(self.config.device).type
        settings = json.loads(json.dumps(flat(replace(self.config, device=device))))
        # What train.py chooses itself.
        chosen = {"threads"} if not self.config.threads else set()
        chosen |= {"precision"} if self.config.precision == "auto" else set()
        return [
            f"{name} was {was}, is {settings[name]}" + (" (may only grow)" * (name == "frames"))
            for name, was in self.recorded().items()
            if name in settings.keys() - NOT_PART_OF_THE_RUN - chosen
            and was != settings[name]
            and not (name == "frames" and settings[name] > was)
        ]

    def threads(self, share: int) -> int:
        """Threads of its processes: as asked for, as it was started with, or its share of cores."""
        recorded = self.recorded().get("threads")
        return self.config.threads or (recorded if isinstance(recorded, int) else share)


def plan(config: StudyConfig, passed_on: Sequence[str]) -> list[PlannedRun]:
    """All runs of a study: those of the first seed first, so that early tables are even.

    Raises `UsageError` for what cannot be run, before anything is.
    """
    for flag, value in (("--seeds", config.seeds), ("--jobs", config.jobs)):
        if value < 1:
            raise UsageError(f"{flag} must be at least 1, not {value}")
    if not config.agents or not config.games:
        raise UsageError("--games and --agents need a name each")
    for agent in config.agents:
        one_of("--agents", agent, AGENTS)
    for argument in passed_on:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OURS:
            raise UsageError(f"{flag} after -- is the study's to say: use its own flags")
    configs: dict[str, TrainConfig] = {}
    planned = []
    agents = dict.fromkeys(config.agents)
    for seed, game, agent in product(seeds_of(config), games_of(config.games), agents):
        run_dir = config.out / "runs" / f"{game.replace('/', '-')}-{agent}-seed{seed}"
        flags = (
            *("--game", game, "--agent", agent, "--preset", config.preset),
            *("--frames", str(config.frames), "--seed", str(seed), "--run-dir", str(run_dir)),
            *passed_on,
        )
        if agent not in configs:
            try:
                configs[agent] = parse_arguments(flags)
            except UsageError as error:
                raise UsageError(f"agent {agent} cannot be trained so: {error}") from None
        run = replace(configs[agent], game=game, seed=seed, run_dir=run_dir)
        planned.append(PlannedRun(run_dir, run, flags))
    return planned


def seeds_of(config: StudyConfig) -> list[int]:
    """The seeds, each once. Raises `UsageError` otherwise."""
    for seed in config.seed_list:
        if seed < 0:
            raise UsageError(f"--seed-list: a seed must not be negative, but one is {seed}")
        if config.seed_list.count(seed) > 1:
            raise UsageError(f"--seed-list has {seed} more than once: the same run twice is one")
    return list(config.seed_list or range(config.seeds))


def games_of(names: Sequence[str]) -> list[str]:
    """Games by sets and names, each once, as train.py calls them.

    Raises `UsageError` for a name that is neither.
    """
    games: dict[str, None] = {}
    for name in names:
        key = "".join(filter(str.isalnum, name.lower()))
        if key in GAME_SETS:
            games |= dict.fromkeys(GAME_SETS[key])
        elif is_atari(name):
            games[canonical_game(name)] = None
        else:
            _check_environment(name, key)
            games[name] = None
    return list(games)


def _check_environment(name: str, key: str) -> None:
    near = difflib.get_close_matches(key, GAME_SETS, n=1, cutoff=0.7)
    try:
        make_vector(name, 1, seed=0, protocol=PROTOCOLS["paper"], training=True).close()
    except UnknownGameError as error:
        if near:
            raise UsageError(
                f"--games {shown(name)} is no set and no game: did you mean {near[0]}?"
            ) from None
        raise UsageError(f"--games: {error}; sets are {', '.join(GAME_SETS)}") from None
    except ValueError as error:
        raise UsageError(f"--games: {error}") from None


def check_settings(planned: Sequence[PlannedRun]) -> None:
    """Raise `UsageError` if runs that are there were started with other settings."""
    differing = [(run, found) for run in planned if (found := run.differences())]
    if differing:
        run, found = differing[0]
        others = f" (and {len(differing) - 1} more runs)" if len(differing) > 1 else ""
        raise UsageError(
            f"{run.run_dir}{others} was started with other settings: {'; '.join(found)}. Repeat "
            "them to go on, or choose another --out"
        )
