"""The words and tables of a report, as Markdown."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ebu.commands.reporting.aggregates import Aggregate, GameRow, Improvement, Statistics
from ebu.commands.reporting.comparison import Comparison, Group
from ebu.commands.reporting.milestones import SHARES, Milestones
from ebu.commands.reporting.published import (
    PUBLISHED_26,
    PUBLISHED_49,
    reference_agents,
    references,
)
from ebu.run.markdown import NONE, table, table_of

METHOD = """\
Raw scores are means over the games of a run's evaluation, then over seeds; their interval is
Student's t over seeds. Human-normalised: 0 for random play, 1 for the human of the table that is
named (Mnih et al. 2015). Relative to an agent: (score − its score) / (max(human, its score) −
random), with the human scores of the Nature table (Wang et al. 2016). Mean: of all runs; median:
over games, of each game's mean; IQM: mean of the middle half of all runs; their intervals, and
those of profiles, are 95 % percentile intervals of a bootstrap stratified by game (Agarwal et al.
2021), 2,000 resamples with a fixed seed. They are left out where a game has fewer than three seeds,
and with few seeds they are too narrow: of normal scores, the interval of the mean holds the true
mean in 73 % of cases for three seeds of one game, in 84 % for three of five games or five of one,
in 87 % for three of 26 games, in 90 % for ten of one."""
OF_MEANS = ", of the games' means"
"""Follows an interquartile mean of an agent whose single runs are not published."""


def report_text(
    comparison: Comparison,
    groups: Sequence[Statistics],
    reached: Mapping[str, Sequence[Milestones]],
    damaged: Sequence[str],
    pictures: Mapping[str, str],
) -> str:
    """The whole report.

    | argument | meaning |
    | --- | --- |
    | reached | frames to shares of the human's score, by name of a group |
    | pictures | file names by training protocol and by name of a group |
    """
    parts = ["# Report", METHOD]
    for found in groups:
        name = found.group.name
        parts += _group(found, reached[name], pictures.get(name))
    if not groups:
        parts.append("No run has a score after all the frames it was asked to play.")
    for protocol in comparison.curves:
        if protocol in pictures:
            parts += [
                f"## Learning curves, trained under protocol {protocol}",
                "Mean raw return of the last 100 training games, or of all so far: the mean over "
                "seeds with its 95 % interval (Student's t, cut at the panel's edge), thin lines "
                "for single seeds.",
                f"![learning curves]({pictures[protocol]})",
            ]
    parts += _left_out(comparison, damaged)
    protocols = {
        found.group.protocol for found in groups if any(map(references, found.group.games))
    }
    if "atari100k" in protocols:
        parts += _published_26()
    if protocols - {"atari100k"}:
        parts += _published_49()
    return "\n\n".join(parts) + "\n"


def _group(found: Statistics, reached: Sequence[Milestones], profile: str | None) -> list[str]:
    group = found.group
    parts = [f"## Protocol {group.protocol}, {group.frames:,} frames, {group.scored_by}"]
    mixed = mixed_precisions(group)
    parts += [f"**Warning:** {mixed}.", "### Scores"] if mixed else ["### Scores"]
    parts.append(_scores(found.rows))
    if group.protocol == "machado":
        parts.append(
            "This protocol scores training games: that is the last column. The scores are "
            "of games played afterwards."
        )
    for aggregate in found.aggregates:
        parts += _aggregate(group, aggregate)
    if reached:
        parts += [
            "### Frames to reach a share of the human's score",
            "Until the mean return of the last 100 training games, or of all so far, first was "
            "there: the median over the seeds that reached it, and how many did.",
            _milestones(reached),
        ]
    if found.improvements:
        parts += [
            "### Probability of improvement",
            "That a run of the first agent scores higher than one of the second in the same game, "
            "over the games in which both have two seeds or more; the interval is a bootstrap over "
            "seeds, from three seeds. It has no width where no runs of the two overlap, which says "
            "nothing of how certain that is.",
            _improvements(found.improvements),
        ]
    if profile is not None:
        games = _games(found.profile_games)
        parts += [
            f"### Performance profile, {games}, human table {found.profile_table}",
            f"![performance profile]({profile})",
        ]
    if any(references(game) for game in group.games):
        parts += ["### Published scores of these games", _reference_scores(group)]
    missing = group.missing()
    if missing:
        lines = [
            f"- {name}: "
            + "; ".join(f"{game} seed {', '.join(map(str, seeds))}" for game, seeds in of.items())
            for name, of in missing.items()
        ]
        parts += ["### Missing runs", "\n".join(lines)]
    return parts


def mixed_precisions(group: Group) -> str | None:
    """A line on a table whose runs were computed in several precisions; None for one."""
    found = group.precisions()
    if len(found) < 2:
        return None
    methods = "; ".join(f"{precision}: {', '.join(names)}" for precision, names in found.items())
    return f"the table of {group.name} mixes precisions ({methods})"


def _scores(rows: Sequence[GameRow]) -> str:
    here: list[tuple[str, Callable[[GameRow], str]]] = []
    if any(row.relative_to_dqn_here is not None for row in rows):
        here.append(("relative to dqn here", lambda row: _share(row.relative_to_dqn_here)))
    return table_of(
        rows,
        ("game", lambda row: row.game),
        ("agent", lambda row: row.method),
        ("seeds", lambda row: _seeds(row.seeds)),
        ("score", lambda row: _number(row.mean)),
        ("95 % over seeds", lambda row: _interval(row.interval)),
        ("human-normalised, nature2015", lambda row: _share(row.normalised["nature2015"])),
        ("57table", lambda row: _share(row.normalised["57table"])),
        ("relative to DQN (Nature, 200M)", lambda row: _share(row.relative_to_dqn_200m)),
        *here,
        ("return of last 100 training games", lambda row: _number(row.last_games)),
    )


def _aggregate(group: Group, aggregate: Aggregate) -> list[str]:
    left_out = [game for game in group.games if game not in aggregate.games]
    rows = []
    for row in aggregate.rows:
        cells = [row.name, f"{row.frames:,}", str(row.runs or NONE)]
        for index in range(3):
            cell = _share(float(row.values[index]))
            if row.low is not None and row.high is not None:
                cell += f" [{_share(float(row.low[index]))}, {_share(float(row.high[index]))}]"
            cells.append(cell)
        if row.of_means:
            cells[-1] += OF_MEANS
        rows.append([*cells, str(row.above_human), row.source, row.protocol])
    header = ["agent", "frames", "runs", "mean", "median", "IQM", "games above human"]
    header += ["source", "protocol"]
    parts = [
        f"### Human-normalised over {_games(aggregate.games)}, human table {aggregate.table}",
        table(header, rows),
    ]
    if left_out:
        parts.append(
            f"Not in it, for want of a human or published score or of an agent's run: "
            f"{', '.join(left_out)}."
        )
    return parts


def _milestones(reached: Sequence[Milestones]) -> str:
    rows = []
    for each in reached:
        cells = [
            f"{np.median(frames):,.0f} ({len(frames)} of {each.runs})" if frames else NONE
            for frames in each.frames.values()
        ]
        rows.append([each.game, each.method, *cells])
    return table(["game", "agent", *map(_share, SHARES)], rows)


def _improvements(found: Sequence[Improvement]) -> str:
    rows = []
    for each in found:
        interval = NONE
        if each.low is not None and each.high is not None:
            interval = f"{_share(each.low)} to {_share(each.high)}"
        rows.append([each.name, each.over, str(each.games), _share(each.probability), interval])
    return table(["agent", "over", "games", "probability", "95 % over seeds"], rows)


def _reference_scores(group: Group) -> str:
    header = ["game", "random", "human, nature2015", "human, 57table"]
    agents = reference_agents(group.protocol)
    header += [f"{agent.name}, {agent.frames / 1_000_000:g}M" for agent in agents]
    rows = []
    for game in group.games:
        known = references(game)
        if known is not None:
            scores = [known.random, known.human_nature2015, known.human_57table]
            scores += [agent.score(game) for agent in agents]
            rows.append([game, *map(_number, scores)])
    notes = "; ".join(
        f"{agent.name}: {agent.source} ({agent.protocol}"
        + (f", {agent.runs} runs)" if agent.runs else ")")
        for agent in agents
    )
    return f"{table(header, rows)}\n\nSources: {notes}."


def _published_26() -> list[str]:
    return [
        "## Published human-normalised scores over the 26 games of Atari 100k",
        "400,000 frames, human table 57table. To be compared with runs of all 26 games only.",
        table_of(
            PUBLISHED_26,
            ("agent", lambda row: row.agent.name),
            ("mean", lambda row: _share(row.mean)),
            ("median", lambda row: _share(row.median)),
            ("IQM", lambda row: _share(row.iqm) + ("" if row.agent.runs else OF_MEANS)),
            ("games above human", lambda row: row.above_human),
            ("runs of each game", lambda row: row.agent.runs or NONE),
            ("protocol", lambda row: row.agent.protocol),
            ("source", lambda row: row.agent.source),
        ),
    ]


def _published_49() -> list[str]:
    recalled = {True: ", **recalled, not read**", False: ""}
    return [
        "## Published human-normalised scores over the 49 games",
        "To be compared with runs of all 49 games only.",
        table_of(
            PUBLISHED_49,
            ("agent", lambda row: row.name),
            ("frames", lambda row: f"{row.frames:,}"),
            ("mean", lambda row: NONE if row.mean is None else f"{row.mean:g} %"),
            ("median", lambda row: f"{row.median:g} %"),
            ("human table", lambda row: row.human_table or "not known"),
            ("protocol", lambda row: row.protocol),
            ("source", lambda row: row.source + recalled[row.recalled]),
        ),
    ]


def _left_out(comparison: Comparison, damaged: Sequence[str]) -> list[str]:
    parts = []
    if comparison.variants:
        rows = [
            [name, ", ".join(f"{key} {value}" for key, value in settings.items())]
            for name, settings in comparison.variants.items()
        ]
        parts += [
            "## Settings",
            "Those in which the runs of an agent differ, and those of the agent that are not its "
            "defaults.",
            table(["name", "settings"], rows),
        ]
    if comparison.unfinished:
        rows = []
        for run in comparison.unfinished:
            frames = f"{run.played_frames:,} of {run.asked_frames:,}"
            last = NONE
            if run.score is not None:
                last = f"{_number(run.score.mean)} at {run.score.frames:,} frames"
            rows.append([str(run.directory), frames, last])
        parts += [
            "## Runs in no table",
            "Without a score after all their frames: train them on, or score them with "
            "`evaluate.py RUN`.",
            table(["run", "frames played", "last evaluation"], rows),
        ]
    lines = [f"- {line}" for line in damaged]
    lines += [
        f"- {run.directory} repeats {first.directory}: same settings, seed and frames"
        for run, first in comparison.repeated
    ]
    if lines:
        parts += ["## Left out", "\n".join(lines)]
    return parts


def _games(games: Sequence[str]) -> str:
    return games[0] if len(games) == 1 else f"{len(games)} games"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.2f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return NONE if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"
