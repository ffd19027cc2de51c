"""Runs side by side: which may be compared, and under which names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studies.runs import Run, method_settings, normalised, settings_digest

# A name lists so many differing settings at most.
MOST_NAMED_SETTINGS = 3


@dataclass(frozen=True)
class Group:
    """Finished runs that may be compared: one protocol of evaluation, one number of frames.

    `methods[name][game]` are the runs of a method on a game, one for each seed, in their order.
    """

    protocol: str
    frames: int
    methods: dict[str, dict[str, list[Run]]]

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
        runs = [run for games in self.methods.values() for of in games.values() for run in of]
        seeds = sorted({run.seed for run in runs})
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
    | variants | settings in which the methods of one agent differ, by method |
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
    groups: dict[tuple[str, int], Group] = {}
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
        key = (name, run.game, run.seed, run.asked_frames, score.protocol)
        if key in first:
            comparison.repeated.append((run, first[key]))
            continue
        first[key] = run
        at = (score.protocol, run.asked_frames)
        group = groups.setdefault(at, Group(*at, methods={}))
        group.methods.setdefault(name, {}).setdefault(run.game, []).append(run)
    comparison.groups.extend(groups[at] for at in sorted(groups))
    for group in comparison.groups:
        ordered = sorted(group.methods.items())
        group.methods.clear()
        group.methods.update(ordered)
    return comparison


def _method(run: Run) -> tuple[str, str]:
    return run.agent, settings_digest(run.settings)


def _names(
    runs: Sequence[Run],
) -> tuple[dict[tuple[str, str], str], dict[str, dict[str, Any]]]:
    """A name for each method, and the settings that tell those of one agent apart."""
    names: dict[tuple[str, str], str] = {}
    variants: dict[str, dict[str, Any]] = {}
    for protocol in sorted({str(run.settings["protocol"]) for run in runs}):
        for agent in sorted({run.agent for run in runs}):
            of_agent = {
                _method(run): method_settings(run.settings)
                for run in runs
                if run.agent == agent and run.settings["protocol"] == protocol
            }
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
            for method, settings in of_agent.items():
                own = {key: settings.get(key) for key in differing}
                if not own:
                    names[method] = agent
                    continue
                short = ", ".join(f"{key}={value}" for key, value in own.items())
                if len(own) > MOST_NAMED_SETTINGS:
                    telling = len(set(presets.values())) == len(presets)
                    short = presets[method] if telling else method[1][:6]
                names[method] = f"{agent} {short}"
                variants[names[method]] = own
    return names, variants
