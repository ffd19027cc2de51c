"""Runs side by side: which may be compared, and under which names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.settings import AGENTS
from ebu.commands.reporting.published import normalised
from ebu.commands.reporting.runs import Run, method_settings, settings_digest
from ebu.run.settings import flat
from envs.protocols import PROTOCOLS

# A name lists at most this many differing settings.
MOST_NAMED_SETTINGS = 3


@dataclass(frozen=True)
class Group:
    """Finished runs that may be compared: scored alike, after one number of frames.

    | field | meaning |
    | --- | --- |
    | protocol, frames | of the evaluation; emulator frames of training |
    | games_each | games in which each run was scored |
    | final | by evaluate.py, of the final weights; otherwise the last evaluation in training |
    | methods | runs by method and game, one for each seed, in their order |
    """

    protocol: str
    frames: int
    games_each: int
    final: bool
    methods: dict[str, dict[str, list[Run]]]

    @property
    def name(self) -> str:
        """Protocol and frames, and how it was scored where that is not as the protocol says."""
        parts = [self.protocol, str(self.frames)]
        if self.games_each != PROTOCOLS[self.protocol].eval_episodes:
            parts.append(f"{self.games_each}games")
        return "-".join(parts + ([] if self.final else ["in-training"]))

    @property
    def scored_by(self) -> str:
        """Which games the scores are means of."""
        usual = PROTOCOLS[self.protocol].eval_episodes
        what = f"{self.games_each} games"
        if self.games_each != usual:
            what += f" instead of the protocol's {usual}"
        return what if self.final else f"last evaluation in training, {what}"

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for games in self.methods.values() for of in games.values() for run in of]

    def precisions(self) -> dict[str, list[str]]:
        """Methods by the precision of their runs."""
        found: dict[str, dict[str, None]] = {}
        for name, games in self.methods.items():
            for run in (run for of in games.values() for run in of):
                found.setdefault(run.precision, {})[name] = None
        return {precision: list(names) for precision, names in sorted(found.items())}

    @property
    def games(self) -> list[str]:
        """Every game that a method has played."""
        return sorted({game for games in self.methods.values() for game in games})

    def common_games(self, table: str) -> list[str]:
        """Games that all methods have played and that have a human score in a table."""
        return [
            game
            for game in self.games
            if all(game in games for games in self.methods.values())
            and normalised(game, 0.0, table) is not None
        ]

    def missing(self) -> dict[str, dict[str, list[int]]]:
        """Seeds that others have and a method has not, by method and game."""
        seeds = sorted({run.seed for run in self.runs})
        missing: dict[str, dict[str, list[int]]] = {}
        for name, games in self.methods.items():
            for game in self.games:
                played = {run.seed for run in games.get(game, [])}
                absent = [seed for seed in seeds if seed not in played]
                if absent:
                    missing.setdefault(name, {})[game] = absent
        return missing


@dataclass(frozen=True)
class Comparison:
    """All runs, sorted.

    | field | meaning |
    | --- | --- |
    | groups | finished and scored runs that may be compared |
    | unfinished | runs without a score after all their frames |
    | curves | runs by training protocol, game and method, one for each seed |
    | variants | settings in which the methods of one agent differ, and those of the agent that are
      not its defaults, by method (and protocol) |
    | repeated | runs left out: others have the same settings, seed and frames |
    """

    groups: list[Group]
    unfinished: list[Run]
    curves: dict[str, dict[str, dict[str, list[Run]]]]
    variants: dict[str, dict[str, Any]]
    repeated: list[tuple[Run, Run]]


def compare(runs: Sequence[Run]) -> Comparison:
    """Sort runs into what may be compared.

    Runs of one agent with different settings are different methods. Of two runs that differ in
    nothing the first counts.
    """
    names, variants = _names(runs)
    groups: dict[tuple[str, int, int, bool], Group] = {}
    comparison = Comparison([], [], {}, variants, [])
    first: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: (run.game, run.agent, run.seed, -run.asked_frames)):
        name = names[_method(run)]
        protocol = str(run.settings["protocol"])
        games = comparison.curves.setdefault(protocol, {})
        drawn = games.setdefault(run.game, {}).setdefault(name, [])
        if run.seed not in [other.seed for other in drawn]:
            drawn.append(run)

        score = run.final_score
        if score is None:
            comparison.unfinished.append(run)
            continue
        if score.protocol != protocol:
            name += f", trained under {protocol}"
        at = (score.protocol, run.asked_frames, score.games, score.final)
        key = (name, run.game, run.seed, at)
        if key in first:
            comparison.repeated.append((run, first[key]))
            continue
        first[key] = run
        group = groups.setdefault(at, Group(*at, methods={}))
        group.methods.setdefault(name, {}).setdefault(run.game, []).append(run)
    comparison.groups.extend(sorted(groups.values(), key=_place))
    for group in comparison.groups:
        ordered = sorted(group.methods.items())
        group.methods.clear()
        group.methods.update(ordered)
    return comparison


def _place(group: Group) -> tuple[str, int, bool, bool, int]:
    """Of equal protocol and frames the protocol's own number of games comes first."""
    usual = group.games_each == PROTOCOLS[group.protocol].eval_episodes
    return group.protocol, group.frames, not group.final, not usual, group.games_each


def _method(run: Run) -> tuple[str, str]:
    return run.agent, settings_digest(run.settings)


def _names(runs: Sequence[Run]) -> tuple[dict[tuple[str, str], str], dict[str, dict[str, Any]]]:
    """A name for each method, and the settings that say what it is: see `Comparison.variants`.

    A name has what is not as in most methods of the agent: the base of variants has none.
    """
    names: dict[tuple[str, str], str] = {}
    variants: dict[str, dict[str, Any]] = {}
    protocols = sorted({str(run.settings["protocol"]) for run in runs})
    for protocol in protocols:
        for agent in sorted({run.agent for run in runs}):
            recorded = {
                _method(run): run.settings
                for run in runs
                if run.agent == agent and run.settings["protocol"] == protocol
            }
            of_agent = {method: method_settings(settings) for method, settings in recorded.items()}
            presets = {
                _method(run): str(run.settings.get("preset"))
                for run in runs
                if _method(run) in of_agent
            }
            keys = {key for settings in of_agent.values() for key in settings}
            differing = sorted(
                key
                for key in keys
                if len({repr(settings.get(key)) for settings in of_agent.values()}) > 1
            )
            usual = _usual(list(of_agent.values()), differing)
            for method, settings in of_agent.items():
                own = {key: settings.get(key) for key in differing}
                named = [
                    f"{key}={value}" for key, value in own.items() if usual[key] != repr(value)
                ]
                if len(named) > MOST_NAMED_SETTINGS:
                    distinct = len(set(presets.values())) == len(presets)
                    named = [presets[method] if distinct else method[1][:6]]
                names[method] = f"{agent} {', '.join(named)}".rstrip()
                own |= _not_the_default(agent, recorded[method])
                if own:
                    several = len(protocols) > 1
                    title = f"{names[method]}, {protocol}" if several else names[method]
                    variants[title] = own
    return names, variants


def _not_the_default(agent: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's own settings that are not as its name says."""
    if agent not in AGENTS:
        return {}
    defaults = flat(AGENTS[agent])
    usual, own = method_settings({"agent": agent, **defaults}), method_settings(recorded)
    return {
        name: recorded[name]
        for name in defaults
        if name in recorded and own.get(name) != usual.get(name)
    }


def _usual(methods: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, str | None]:
    """What more than half of the methods have for each of these settings, as Python writes it."""
    usual: dict[str, str | None] = {}
    for key in keys:
        ((value, count),) = Counter(repr(settings.get(key)) for settings in methods).most_common(1)
        usual[key] = value if 2 * count > len(methods) else None
    return usual
