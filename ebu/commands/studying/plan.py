"""What a study plays: its runs by game, agent and seed, and whether they can be played."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from agents import AGENTS
from agents.settings import check_frames
from ebu.commands.game_names import about_game
from ebu.commands.presets import TrainConfig, with_network
from ebu.commands.reporting.runs import Run, read_run
from ebu.commands.reporting.scores import RunScore, final_record, score_of
from ebu.commands.studying.committed import result_differences
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trust import add_working_directory
from ebu.errors import EbuError, UsageError
from ebu.run.directory import (
    AUTOMATIC,
    CONFIG,
    NOT_PART_OF_THE_RUN,
    differences,
    directory_name,
    read_config,
)
from ebu.run.files import is_there
from ebu.run.settings import Bounds, NotNegative, Positive, did_you_mean, flat, one_of
from envs import UnknownGameError, Variant, check_game, is_atari, make_vector
from envs.games import GAME_SETS, canonical_game, quote
from envs.protocols import PROTOCOLS

# What the study itself says to train.py.
OURS = ("--game", "--agent", "--preset", "--frames", "--seed", "--run-dir", "--resume")
# What train.py reads outside of a run: in one of the study it would do nothing, or end it.
_NO_RUNS = ("--trust-env", "--list-games", "--help", "-h", "--version")
# More than any study has: a cluster queues what it has no room for.
_ALL = 1_000_000
# Names of variants become names of directories.
_VARIANT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+]*):(?: (.*))?")


@dataclass(frozen=True)
class StudyConfig:
    """What is trained and scored."""

    games: tuple[str, ...]
    """Sets of games (paper49, atari5, all57, atari100k, atari100k-5) and games, mixed."""
    agents: tuple[str, ...] = ("ebu", "dqn")
    """Agents by the names that train.py knows."""
    seeds: Annotated[int, Bounds(1, 1_000)] = 1
    """How many seeds: 3 means 0, 1 and 2."""
    seed_list: tuple[NotNegative, ...] = ()
    """These seeds instead."""
    frames: Positive | None = None
    """Emulator frames of each run [default: those of --preset]."""
    preset: str = "default"
    """default, paper or few_frames."""
    variants: tuple[str, ...] = ()
    """Variants that every agent is trained in, each a name and flags of train.py: "base:" "beta1:
    --beta 1"."""
    episodes: Annotated[int, Bounds(1, 1_000_000)] | None = None
    """Games in which each run is scored [default: the protocol's, 30 under paper, otherwise
    100]."""
    jobs: Annotated[int, Bounds(0, 1_000)] | None = None
    """Runs at a time [default: 1, on a cluster as many as it takes]. On this machine each gets its
    share of the processor cores, on a cluster one core, unless -- --threads says more. 0 trains
    nothing, and lists what is missing."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """What plays the runs: this machine, a Ray cluster (extra "cluster"), or Slurm (extra
    "slurm")."""
    address: str = ""
    """The Ray cluster, such as auto or 10.0.0.1:6379 [default: one on this machine, for the time of
    the study]; with --engine slurm, local plays the jobs on this machine."""
    runs_per_gpu: Annotated[int, Bounds(1, 1_000)] = 1
    """Runs that share a GPU of a cluster."""
    sbatch: tuple[str, ...] = ()
    """Options of sbatch for the jobs of --engine slurm: partition=gpu time=1440 (minutes)."""
    out: Path = Path("runs/study")
    """Output directory: the runs, a log of each, and, without --results, results.csv."""
    results: Path | None = None
    """Copy the small files of each finished run here, to be committed, and write results.csv from
    them; a run with a result is not played again."""
    collect: tuple[Path, ...] = ()
    """Finished and scored runs that were trained on this machine without a study, or directories
    that hold some, whose results go to --results too."""
    collect_commit: str = ""
    """Commit of the code that trained the runs of --collect."""

    @property
    def at_a_time(self) -> int:
        """Runs at a time."""
        if self.jobs is None:
            return 1 if self.engine == "local" else _ALL
        return self.jobs


@dataclass(frozen=True)
class PlannedRun:
    """A run of the study: its directory and its settings, as train.py will read them."""

    run_dir: Path
    config: TrainConfig
    flags: tuple[str, ...]
    games: int
    result_dir: Path | None = None

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by the name of its flag."""
        return flat(self.config)

    def is_done(self) -> bool:
        """Whether it has a result, where results are written, or else a score."""
        if self.result_dir is not None:
            return is_there(self.result_dir / CONFIG)
        return self.is_scored()

    def is_scored(self) -> bool:
        """Whether evaluate.py has played all games with the final weights."""
        try:
            record = final_record(self.run_dir, self.config.protocol, self.games)
        except EbuError:
            # Damaged: it is scored again.
            return False
        return record is not None and self._accepts(score_of(record))

    def _accepts(self, score: RunScore | None) -> bool:
        return (
            score is not None
            and score.final
            and score.frames >= self.config.frames
            and score.protocol == self.config.protocol
            and score.games == self.games
        )

    def recorded(self) -> dict[str, Any]:
        """The settings it was started with; none where it was not, or they cannot be read."""
        try:
            return dict(read_config(self.run_dir)["settings"])
        except EbuError:
            # If it is damaged, train.py says so when its turn comes.
            return {}

    def differences(self) -> list[str]:
        """What of the settings it was started with is another now, and may not be."""
        # What train.py chooses itself, as the run was started with where this machine has it.
        automatic = {name for name, value in AUTOMATIC.items() if self.settings[name] == value}
        recorded = self.recorded()
        both = recorded.keys() & self.settings.keys()
        return differences(
            {name: recorded[name] for name in both},
            {name: self.settings[name] for name in both},
            may_change=NOT_PART_OF_THE_RUN | automatic,
            may_grow={"frames"},
        )

    def differences_of(self, found: Run) -> list[str]:
        """What a finished run, or a result, has otherwise than this one."""
        differing = result_differences(found.settings, self.settings)
        if not differing and not self._accepts(found.score):
            differing = [f"its score is not of {self.games} games with the final weights"]
            if found.score is not None and found.score.games != self.games:
                differing = [f"games were {found.score.games}, are {self.games} (see --episodes)"]
        return differing

    def threads(self, share: int) -> int:
        """Threads of its processes: as asked for, as it was started with, or its share of cores."""
        recorded = self.recorded().get("threads")
        return self.config.threads or (recorded if isinstance(recorded, int) else share)


def plan(config: StudyConfig, passed_on: Sequence[str]) -> list[PlannedRun]:
    """All runs of a study: those of the first seed first, so that early tables are even.

    Raises `UsageError` for what cannot be run, before anything is.
    """
    if not config.agents or not config.games:
        raise UsageError("--games and --agents need a name each")
    if config.collect and config.results is None:
        raise UsageError("--collect copies results to --results: name a directory")
    if config.collect_commit and not config.collect:
        raise UsageError("--collect-commit says nothing without --collect: leave it out")
    for agent in config.agents:
        one_of("--agents", agent, AGENTS)
    _check_passed_on(passed_on, "after --")
    variants = variants_of(config.variants)
    configs: dict[bool, dict[tuple[str, str], TrainConfig]] = {True: {}, False: {}}
    planned, networks = [], dict[tuple[str, str, str], str]()
    cells = product(
        seeds_of(config), games_of(config.games), dict.fromkeys(config.agents), variants
    )
    for seed, game, agent, variant in cells:
        parts = [directory_name(game), agent, variant, f"seed{seed}"]
        name = "-".join(part for part in parts if part)
        run_dir = config.out / "runs" / name
        flags = (
            *("--game", game, "--agent", agent, "--preset", config.preset),
            *(() if config.frames is None else ("--frames", str(config.frames))),
            *("--seed", str(seed), "--run-dir", str(run_dir)),
            *passed_on,
            *variants[variant],
        )
        of = f"agent {agent}" + (f", variant {variant}," if variant else "")
        of_kind = configs[is_atari(game)]
        if (agent, variant) not in of_kind:
            try:
                of_kind[agent, variant] = parse_arguments(flags)
            except UsageError as error:
                raise UsageError(f"{of} cannot be trained so: {error}") from None
            _check_differs(agent, variant, of_kind)
        run = replace(of_kind[agent, variant], game=game, seed=seed, run_dir=run_dir)
        if (game, agent, variant) not in networks:
            networks[game, agent, variant] = _network_of(run)
        run = replace(run, learner=replace(run.learner, network=networks[game, agent, variant]))
        games = config.episodes or PROTOCOLS[run.protocol].eval_episodes
        result_dir = None if config.results is None else config.results / name
        planned.append(PlannedRun(run_dir, run, flags, games, result_dir))
    return planned


def _check_passed_on(flags: Sequence[str], where: str) -> None:
    for argument in flags:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OURS:
            raise UsageError(f"{flag} {where} is the study's to say: use its own flags")
        if flag in _NO_RUNS or flag.replace("--no-", "--", 1) in _NO_RUNS:
            raise UsageError(f"{flag} {where} says nothing of a run: leave it out")


def _check_differs(agent: str, variant: str, configs: dict[tuple[str, str], TrainConfig]) -> None:
    this = flat(configs[agent, variant])
    for (other_agent, other), config in configs.items():
        same = not result_differences(flat(config), this)
        if same and (other_agent, other) != (agent, variant):
            raise UsageError(f"--variants {other} and {variant} are the same settings of {agent}")


def variants_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Flags of train.py by the names of variants; one without a name or flags if none is asked for.

    Raises `UsageError` for what is no variant.
    """
    variants: dict[str, list[str]] = {}
    for text in texts:
        found = _VARIANT.fullmatch(text.strip())
        if found is None:
            raise UsageError(
                f'--variants {quote(text)}: write a name and flags, such as "beta1: --beta 1"'
            )
        name = found[1]
        try:
            flags = shlex.split(found[2] or "")
        except ValueError as error:
            raise UsageError(f"--variants {quote(text)}: {error}") from None
        if name in variants:
            raise UsageError(f"--variants has {name} more than once: name each once")
        _check_passed_on(flags, f"in variant {name}")
        variants[name] = flags
    return variants or {"": []}


def seeds_of(config: StudyConfig) -> list[int]:
    """The seeds, each once. Raises `UsageError` otherwise."""
    for seed in config.seed_list:
        if config.seed_list.count(seed) > 1:
            raise UsageError(f"--seed-list has {seed} more than once: the same run twice is one")
    return list(config.seed_list or range(config.seeds))


def games_of(names: Sequence[str]) -> list[str]:
    """Games by sets and names, each once, as train.py calls them.

    Raises `UsageError` for a name that is neither.
    """
    add_working_directory([name for name in names if ":" in name])
    games: dict[str, None] = {}
    sets = {_plain(name): games_in for name, games_in in GAME_SETS.items()}
    for name in names:
        key = _plain(name)
        if key in sets:
            games |= dict.fromkeys(sets[key])
        elif is_atari(name):
            games[canonical_game(name)] = None
        else:
            _check_name(name, key)
            games[name] = None
    return list(games)


def _plain(name: str) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


def _check_name(name: str, key: str) -> None:
    try:
        check_game(name)
    except UnknownGameError as error:
        near = did_you_mean(key, GAME_SETS, cutoff=0.7)
        if near:
            raise UsageError(f"--games {quote(name)} is no set and no game{near}") from None
        raise UsageError(f"--games: {about_game(error)}; sets are {', '.join(GAME_SETS)}") from None


def _network_of(run: TrainConfig) -> str:
    """The network of a run, which may be that for what its environment shows.

    Raises `UsageError` for an environment that cannot be made with its arguments and wrappers.
    """
    variant = Variant(run.env_args or (), run.env_wrappers or ())
    if is_atari(run.game) and variant == Variant():
        return with_network(run, ()).learner.network
    protocol = PROTOCOLS[run.protocol]
    try:
        env = make_vector(run.game, 1, seed=0, protocol=protocol, training=True, variant=variant)
    except ValueError as error:
        raise UsageError(f"--games: {error}") from None
    env.close()
    try:
        check_frames(run.method, env.frame_shape)
    except UsageError as error:
        raise UsageError(f"{run.agent} cannot be trained on {run.game} so: {error}") from None
    return with_network(run, env.frame_shape).learner.network


def check_settings(planned: Sequence[PlannedRun]) -> None:
    """Raise `UsageError` if existing runs or results have other settings.

    Raises `EbuError` for a damaged result.
    """
    differing = []
    for run in planned:
        if run.result_dir is not None and run.is_done():
            found = run.differences_of(read_run(run.result_dir, run.games))
            differing.append((run.result_dir, found, "was played"))
        else:
            differing.append((run.run_dir, run.differences(), "was started"))
    differing = [each for each in differing if each[1]]
    if differing:
        directory, found, how = differing[0]
        others = f" (and {len(differing) - 1} more runs)" if len(differing) > 1 else ""
        flag = "--out" if how == "was started" else "--results"
        raise UsageError(
            f"{directory}{others} {how} with other settings: {'; '.join(found)}. Repeat them to "
            f"continue, or choose another {flag}"
        )
