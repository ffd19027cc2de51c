"""The report: what is compared with what, its figures by hand, and what it says of the rest."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import trim_mean

from ebu.commands import report
from ebu.commands.reporting.aggregates import Profile, aggregates, game_rows, statistics_of
from ebu.commands.reporting.comparison import Comparison, compare
from ebu.commands.reporting.milestones import milestones
from ebu.commands.reporting.pictures import (
    draw_curves,
    draw_profiles,
    mean_curve,
    write_pictures,
)
from ebu.commands.reporting.published import (
    AGENTS_100K,
    PUBLISHED_26,
    PUBLISHED_49,
    REFERENCE_AGENTS,
    normalised,
)
from ebu.commands.reporting.runs import find_run_directories, learning_curve, read_run, read_runs
from ebu.commands.reporting.scores import write_evaluation
from ebu.errors import EbuError, UsageError
from envs.games import ATARI100K, PAPER49
from tests.figures import unreadable
from tests.run_directories import FRAMES, evaluation, write_run

# Between random play and the Nature human: Pong -20.7 to 9.3, Breakout 1.7 to 31.8.
PONG = {0.0: -20.7, 0.5: -5.7, 1.0: 9.3, 2.0: 39.3}
BREAKOUT = {0.0: 1.7, 1.0: 31.8, 3.0: 92.0}


def compared(root: Path) -> Comparison:
    return compare([read_run(run_dir) for run_dir in find_run_directories([root])])


def run_report(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, args)])
    report.main()


@pytest.fixture
def four_runs(tmp_path: Path) -> Path:
    """Two seeds of two games by ebu, one of them by dqn."""
    for seed, (pong, breakout) in enumerate([(0.0, 1.0), (1.0, 3.0)]):
        write_run(tmp_path, "pong", "ebu", seed, PONG[pong])
        write_run(tmp_path, "breakout", "ebu", seed, BREAKOUT[breakout])
        write_run(tmp_path, "pong", "dqn", seed, PONG[0.5])
    return tmp_path


def test_scores_by_hand(four_runs: Path) -> None:
    (group,) = compared(four_runs).groups
    rows = {(row.game, row.method): row for row in game_rows(group)}
    assert rows.keys() == {("breakout", "ebu"), ("pong", "dqn"), ("pong", "ebu")}
    row = rows["pong", "ebu"]
    assert row.seeds == [0, 1]
    assert row.mean == pytest.approx(-5.7)
    # Two scores 30 apart: a standard error of 15, and Student's t with one degree of freedom.
    assert row.interval == pytest.approx((-5.7 - 12.7062 * 15, -5.7 + 12.7062 * 15), rel=1e-4)
    assert row.normalised["nature2015"] == pytest.approx(0.5)
    assert row.normalised["57table"] == pytest.approx(15 / 35.3)
    # DQN at 200M frames scores 18.9, more than the human.
    assert row.relative_to_dqn_200m == pytest.approx((-5.7 - 18.9) / (18.9 + 20.7))
    assert row.relative_to_dqn_here == pytest.approx(0)
    assert rows["pong", "dqn"].relative_to_dqn_here is None
    assert row.last_games == pytest.approx(10.5)
    assert group.scored_by == "30 games"
    assert rows["breakout", "ebu"].normalised["nature2015"] == pytest.approx(2)


def test_aggregates_by_hand(tmp_path: Path) -> None:
    for seed, (pong, breakout) in enumerate([(0.0, 1.0), (1.0, 3.0)]):
        write_run(tmp_path, "pong", "ebu", seed, PONG[pong])
        write_run(tmp_path, "breakout", "ebu", seed, BREAKOUT[breakout])
    (group,) = compared(tmp_path).groups
    nature, later = aggregates(group)
    assert (nature.table, later.table) == ("nature2015", "57table")
    assert nature.games == ["breakout", "pong"]
    ours, dqn, *_ = nature.rows
    assert (ours.name, ours.runs, ours.source) == ("ebu", 4, "here")
    # Of 0, 1, 1, 3: the mean; the median of the games' means 1/2 and 2; the middle half.
    np.testing.assert_allclose(ours.values, [1.25, 1.25, 1.0])
    assert ours.low is None
    shares = [(18.9 + 20.7) / 30, (401.2 - 1.7) / 30.1]
    assert dqn.name == "DQN (Nature)"
    np.testing.assert_allclose(dqn.values, [np.mean(shares)] * 3)
    assert dqn.low is None


def test_intervals_are_bootstrapped_by_hand(tmp_path: Path) -> None:
    for seed, pong in enumerate([0.0, 0.0, 0.0, 1.0, 0.0]):
        (group,) = compared(tmp_path).groups if seed in (1, 2) else (None,)
        if group is not None:
            few = statistics_of(group)
            assert [row.low for row in few.aggregates[0].rows[:2]] == [None, None]
            assert [profile.low for profile in few.profiles] == [None, None]
            assert [each.low for each in few.improvements] == [None] * (seed > 1)
        write_run(tmp_path, "pong", "ebu", seed, PONG[pong])
        write_run(tmp_path, "pong", "dqn", seed, PONG[0.5])
        for agent in ("ebu", "dqn"):
            write_run(tmp_path, "breakout", agent, seed, BREAKOUT[1.0])
    (group,) = compared(tmp_path).groups
    found = statistics_of(group)
    ours = found.aggregates[0].rows[1]
    assert ours.name == "ebu"
    assert ours.low is not None
    assert ours.high is not None
    # Of five draws among Pong's runs k are the one that scores 1, by the binomial distribution of
    # 1/5: none in 33 % of resamples, three or more in 5.8 %, four or more in 0.7 %. Breakout's runs
    # all score 1, so that the mean over both games is from (0 + 1) / 2 to (3/5 + 1) / 2.
    np.testing.assert_allclose([ours.low[:2], ours.high[:2]], [[0.5, 0.5], [0.8, 0.8]])
    (better,) = found.improvements
    # dqn wins against 5 - k of Pong's draws, and all of Breakout's are ties.
    assert (better.name, better.games) == ("dqn", 2)
    assert better.probability == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert (better.low, better.high) == pytest.approx(((2 / 5 + 1 / 2) / 2, (1 + 1 / 2) / 2))


def test_one_seed_makes_no_probability_of_improvement(four_runs: Path) -> None:
    write_run(four_runs, "breakout", "dqn", 0, BREAKOUT[0.0])
    (group,) = compared(four_runs).groups
    (better,) = statistics_of(group).improvements
    # Breakout has a single run of dqn. Pong's 0 and 1 against 1/2 twice: two of four pairs.
    assert (better.games, better.probability) == (1, 0.5)


def test_aggregates_are_over_the_games_of_all_agents(four_runs: Path) -> None:
    (group,) = compared(four_runs).groups
    assert {tuple(aggregate.games) for aggregate in aggregates(group)} == {("pong",)}
    assert group.missing() == {"dqn": {"breakout": [0, 1]}}


def test_published_agents_stand_over_the_games_they_have(tmp_path: Path) -> None:
    # No published agent has a score of Phoenix, which the later human table alone has.
    for game in ("phoenix", "pong"):
        write_run(tmp_path, game, "ebu", 0, 100.0)
    (group,) = compared(tmp_path).groups
    found = [(each.table, each.games, len(each.rows)) for each in aggregates(group)]
    assert found == [
        ("nature2015", ["pong"], 5),
        ("57table", ["phoenix", "pong"], 1),
        ("57table", ["pong"], 5),
    ]
    assert all(each.rows[0].low is None for each in aggregates(group))


def test_frames_and_protocols_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path, "pong", "ebu", 0, 1.0)
    write_run(tmp_path, "pong", "ebu", 1, 2.0, frames=20_000, played=20_000)
    machado = write_run(tmp_path, "pong", "ebu", 2, None, protocol="machado")
    record = evaluation(3.0, protocol="machado")
    (machado / "evaluation.json").write_text(json.dumps(record))
    comparison = compared(tmp_path)
    assert [(group.protocol, group.frames) for group in comparison.groups] == [
        ("machado", 10_000),
        ("paper", 10_000),
        ("paper", 20_000),
    ]
    assert [len(group.methods["ebu"]["pong"]) for group in comparison.groups] == [1, 1, 1]
    assert statistics_of(comparison.groups[0]).profile_table == "57table"


def test_other_settings_are_another_method(tmp_path: Path) -> None:
    for beta in (0.0, 0.5):
        write_run(tmp_path, "pong", "ebu", 0, 1.0, name=f"beta{beta}", beta=beta)
    # What changes the speed alone makes no other method.
    write_run(tmp_path, "pong", "dqn", 0, 1.0, threads=1)
    write_run(tmp_path, "pong", "dqn", 1, 1.0, threads=8, device="cuda")
    comparison = compared(tmp_path)
    assert list(comparison.groups[0].methods) == ["dqn", "ebu beta=0.0", "ebu beta=0.5"]
    assert comparison.variants == {"ebu beta=0.0": {"beta": 0.0}, "ebu beta=0.5": {"beta": 0.5}}


@pytest.mark.parametrize(
    "changed",
    [
        {"n_step": 10},
        {"double": True},
        {"prioritized": True},
        {"n_step_start": 5},
        {"quantiles": 5},
    ],
)
def test_no_other_method_than_dqn_is_the_baseline(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"n_step": 1, "double": False, "prioritized": False, "quantiles": 0}
    write_run(tmp_path, "pong", "ebu", 0, PONG[0.0])
    write_run(tmp_path, "pong", "dqn", 0, PONG[1.0], name="other", **{**own, **changed})
    run_report(monkeypatch, tmp_path)
    assert "relative to dqn here" not in (tmp_path / "report" / "report.md").read_text()
    write_run(tmp_path, "pong", "dqn", 0, PONG[0.5], **own)
    (group,) = compared(tmp_path).groups
    rows = {row.method: row.relative_to_dqn_here for row in game_rows(group)}
    assert rows["ebu"] == pytest.approx(-0.5)
    assert sorted(str(value) for value in rows.values()) == ["-0.5", "0.5", "None"]


def test_settings_that_are_not_an_agents_defaults_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: dict[str, Any] = {"n_step": 10, "double": True, "shift_pixels": 4, "batch_size": 32}
    ours["cuda_graphs"] = False
    write_run(tmp_path, "pong", "dqn", 0, 1.0, **ours)
    write_run(tmp_path, "pong", "double_dqn", 0, 1.0, double=True)
    write_run(tmp_path, "pong", "nstep", 0, 1.0, n_step=1)
    write_run(tmp_path, "pong", "imported", 0, 1.0, n_step=5)
    run_report(monkeypatch, tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    _, _, section = text.partition("## Settings\n")
    rows = [line for line in section.partition("\n#")[0].splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| dqn | shift_pixels 4, n_step 10, double True |", "| nstep | n_step 1 |"]


def test_variants_under_several_protocols_keep_their_settings(tmp_path: Path) -> None:
    for protocol, setting in (("paper", "beta"), ("atari100k", "gamma")):
        for value in (0.25, 0.75):
            run: dict[str, Any] = {"protocol": protocol, setting: value}
            write_run(tmp_path, "pong", "ebu", 0, 1.0, name=f"{protocol}{value}", **run)
    assert compared(tmp_path).variants == {
        "ebu gamma=0.25, atari100k": {"gamma": 0.25},
        "ebu gamma=0.75, atari100k": {"gamma": 0.75},
        "ebu beta=0.25, paper": {"beta": 0.25},
        "ebu beta=0.75, paper": {"beta": 0.75},
    }


def test_variants_are_named_by_what_they_do_not_share_with_most(tmp_path: Path) -> None:
    base = {"beta": 0.5, "updates_per_step": 1.0, "learning_rate": 1e-4}
    changes: list[dict[str, Any]] = [
        *({}, {"beta": 1.0}, {"updates_per_step": 0.25}, {"learning_rate": 1e-3}),
        {"beta": 0.0, "updates_per_step": 0.5},
    ]
    for number, change in enumerate(changes):
        write_run(tmp_path, "pong", "ebu", 0, 1.0, name=str(number), **{**base, **change})
    comparison = compared(tmp_path)
    assert set(comparison.groups[0].methods) == {
        *("ebu", "ebu beta=1.0", "ebu updates_per_step=0.25", "ebu learning_rate=0.001"),
        "ebu beta=0.0, updates_per_step=0.5",
    }
    assert comparison.variants["ebu"] == base


def test_scores_of_other_numbers_of_games_and_in_training_have_tables_of_their_own(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, "pong", "ebu", 0, None, evaluated_in_training=7.0)
    for seed, games in enumerate((5, 30, 100), start=1):
        run_dir = write_run(tmp_path, "pong", "ebu", seed, None)
        write_evaluation(run_dir, evaluation(float(games), games=games))
    groups = compared(tmp_path).groups
    assert [(group.games_each, group.final) for group in groups] == [
        *((30, True), (5, True), (100, True), (10, False))
    ]
    assert len({group.name for group in groups}) == 4
    for group in groups:
        assert len(group.runs) == 1
        assert ("instead of the protocol's 30" in group.scored_by) == (group.games_each != 30)


OTHERS: list[dict[str, Any]] = [
    *({"seed": 3}, {"protocol": "machado"}, {"games": 5}, {"games": 100}),
    *({"epsilon": 0.0500001, "protocol_epsilon": 0.05}, {"weights": "best"}),
    *({"policy": "random", "weights": None}, {"trained_frames": FRAMES - 1}, {"max_steps": 50}),
]


def test_of_several_scores_that_of_the_protocol_counts(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, "pong", "ebu", 0, 1.0)
    for number, other in enumerate(OTHERS):
        write_evaluation(run_dir, evaluation(2.0 + number, **other))
    assert len(list((run_dir / "evaluations").iterdir())) == len(OTHERS)
    score = read_run(run_dir).final_score
    assert score is not None
    assert score.mean == 1.0
    five = read_run(run_dir, games=5).score
    assert five is not None
    assert five.games == 5
    # Played further and scored again.
    write_evaluation(run_dir, evaluation(99.0, games=5, trained_frames=2 * FRAMES))
    score = read_run(run_dir).score
    assert score is not None
    assert score.mean == 99.0


def test_a_table_that_mixes_precisions_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "CartPole-v1", "ebu", 0, 1.0)
    run_report(monkeypatch, tmp_path)
    assert "precision" not in capsys.readouterr().err
    write_run(tmp_path, "CartPole-v1", "dqn", 0, 1.0, precision="bfloat16")
    run_report(monkeypatch, tmp_path)
    printed = capsys.readouterr()
    for text in (printed.err, printed.out):
        assert "mixes precisions (bfloat16: dqn; float32: ebu)" in text


def test_presets_name_methods_that_differ_in_much(tmp_path: Path) -> None:
    for number, preset in enumerate(("default", "paper")):
        many = dict.fromkeys("abcdef", number)
        write_run(tmp_path, "pong", "ebu", 0, 1.0, name=preset, preset=preset, **many)
    assert list(compared(tmp_path).groups[0].methods) == ["ebu default", "ebu paper"]


def test_unfinished_unscored_and_repeated_runs_are_in_no_table(tmp_path: Path) -> None:
    write_run(tmp_path, "pong", "ebu", 0, None, played=4_000, evaluated_in_training=7.0)
    write_run(tmp_path, "pong", "ebu", 1, None)
    # Scored before it was asked to train further.
    write_run(tmp_path, "pong", "ebu", 2, 5.0, frames=20_000)
    comparison = compared(tmp_path)
    assert comparison.groups == []
    assert [run.seed for run in comparison.unfinished] == [0, 1, 2]
    assert len(comparison.curves["paper"]["pong"]["ebu"]) == 3
    for name in ("one", "two"):
        write_run(tmp_path, "pong", "dqn", 0, 1.0, name=name)
    comparison = compared(tmp_path)
    assert len(comparison.groups[0].methods["dqn"]["pong"]) == 1
    ((left_out, first),) = comparison.repeated
    assert (left_out.directory.name, first.directory.name) == ("two", "one")


def test_curves_are_averaged_where_all_seeds_have_been(tmp_path: Path) -> None:
    one = learning_curve(write_run(tmp_path, "pong", "ebu", 0, None))
    two = learning_curve(write_run(tmp_path, "pong", "ebu", 4, None, played=6_000))
    assert one[0].tolist() == list(range(1_000, FRAMES + 1, 1_000))
    grid, mean, low, high = mean_curve([one, two])
    assert (grid[0], grid[-1]) == (1_000, 6_000)
    # Returns are frames / 1,000 and four more: a standard error of 2.
    np.testing.assert_allclose(mean, grid / 1_000 + 2)
    np.testing.assert_allclose(high - mean, 12.7062 * 2, rtol=1e-4)
    np.testing.assert_allclose(low + high, 2 * mean)


@pytest.mark.parametrize("agent", REFERENCE_AGENTS, ids=lambda agent: agent.name)
def test_published_aggregates_are_those_of_the_published_scores(agent: Any) -> None:
    found = [normalised(game, agent.score(game), "nature2015") for game in PAPER49]
    shares = np.array(found, dtype=np.float64)
    mean, median = 100 * np.mean(shares), 100 * np.median(shares)
    rows = [row for row in PUBLISHED_49 if row.name.startswith(agent.name) and not row.recalled]
    assert len(rows) == 1
    assert rows[0].frames == agent.frames
    assert (rows[0].mean, rows[0].median) == pytest.approx((mean, median), abs=0.11)


@pytest.mark.parametrize(("agent", "row"), list(zip(AGENTS_100K, PUBLISHED_26, strict=True)))
def test_published_rows_of_atari_100k_are_those_of_the_published_scores(
    agent: Any, row: Any
) -> None:
    shares = np.array(
        [normalised(game, agent.score(game), "57table") for game in ATARI100K], dtype=np.float64
    )
    assert row.agent.name == agent.name
    # Some papers rounded other scores, and aggregates over runs are not of the games' means.
    assert row.mean == pytest.approx(shares.mean(), abs=0.006)
    assert row.above_human == (shares > 1).sum()
    if row.agent.runs is None:
        assert row.iqm == pytest.approx(trim_mean(shares, 0.25), abs=0.006)
    if row.agent.runs is None or row.agent.runs == 5:
        assert row.median == pytest.approx(np.median(shares), abs=0.006)


def test_runs_of_atari_100k_stand_beside_agents_of_the_same_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (ours, others) in enumerate([(40.0, 20.0), (30.0, 35.0)]):
        for agent, score in (("ebu", ours), ("dqn", others)):
            run_dir = write_run(tmp_path, "breakout", agent, seed, None, protocol="atari100k")
            record = evaluation(score, protocol="atari100k")
            (run_dir / "evaluation.json").write_text(json.dumps(record))
    (group,) = compared(tmp_path).groups
    of_breakout = aggregates(group)[-1]
    rows = {row.name: row for row in of_breakout.rows}
    assert {"DER", "SPR", "BBF", "ebu", "dqn"} <= rows.keys()
    assert "DQN (Nature)" not in rows
    # Over a part of the games only the games' means are known of 100 runs.
    assert rows["SPR"].of_means
    assert (rows["SPR"].runs, rows["DER"].runs, rows["ebu"].runs) == (100, None, 2)
    # The human has 30.5: 35 on average is above, 27.5 is not.
    assert (rows["ebu"].above_human, rows["dqn"].above_human) == (1, 0)
    (better,) = statistics_of(group).improvements
    # Of the pairs 20-40, 20-30, 35-40 and 35-30 dqn wins the last.
    assert (better.name, better.over, better.probability) == ("dqn", "ebu", 0.25)
    run_report(monkeypatch, tmp_path)


def test_published_rows_beside_runs_of_all_26_games_are_those_of_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for game in ATARI100K:
        run_dir = write_run(tmp_path, game, "ebu", 0, None, protocol="atari100k")
        record = evaluation(1.0, protocol="atari100k")
        (run_dir / "evaluation.json").write_text(json.dumps(record))
    (group,) = compared(tmp_path).groups
    later = aggregates(group)[-1]
    assert (later.table, len(later.games)) == ("57table", 26)
    rows = {row.name: row for row in later.rows}
    # Agarwal et al. (2021), over 2,600 runs; those of DER are not known.
    np.testing.assert_allclose(rows["SPR"].values, [0.616, 0.396, 0.337])
    assert (rows["SPR"].runs, rows["SPR"].of_means) == (2_600, False)
    assert (rows["DER"].runs, rows["DER"].of_means) == (None, True)
    run_report(monkeypatch, tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| SPR | 400,000 | 2600 | 61.6 % | 39.6 % | 33.7 % |" in text
    assert "14.2 %, of the games' means |" in text


def test_frames_to_shares_of_the_humans_score_by_hand(tmp_path: Path) -> None:
    # Returns are frames / 1,000 and the seed; the human of the later table scores 30.5 at Breakout
    # against 1.7 of random play: a tenth is 4.58.
    for seed in (0, 2):
        write_run(tmp_path, "breakout", "ebu", seed, 1.0, protocol="atari100k")
        record = evaluation(1.0, protocol="atari100k")
        run_dir = tmp_path / f"breakout-ebu-seed{seed}"
        (run_dir / "evaluation.json").write_text(json.dumps(record))
    runs, curves, _ = read_runs(find_run_directories([tmp_path]))
    (group,) = compare(runs).groups
    (found,) = milestones(group, curves, "57table")
    assert (found.game, found.method, found.runs) == ("breakout", "ebu", 2)
    assert found.frames == {0.1: [5_000, 3_000], 0.5: [], 1.0: []}


def test_the_report_of_a_study(
    four_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(four_runs, "CartPole-v1", "ebu", 0, 12.5)
    damaged = write_run(four_runs, "seaquest", "ebu", 0, 5.0)
    (damaged / "metrics.jsonl").write_text('{"frames": 1000}\n{"fra\n{"frames": 3000}\n')
    write_run(four_runs, "qbert", "ebu", 0, None, name="a|b", played=3_000)
    run_report(monkeypatch, four_runs)
    out = four_runs / "report"
    text = (out / "report.md").read_text()
    printed = capsys.readouterr()
    assert printed.out == text
    assert f"left out: {damaged}/metrics.jsonl is damaged in line 2" in printed.err
    assert f"- {damaged}/metrics.jsonl is damaged in line 2" in text
    assert "| CartPole-v1 | ebu | 0 | 12.50 | – | – | – | – |" in text
    assert "- dqn: CartPole-v1 seed 0, 1; breakout seed 0, 1" in text
    assert f"| {four_runs}/a\\|b | 3,000 of 10,000 | – |" in text
    assert "253.55 % | 51.55 %" in text
    assert "**recalled, not read**" in text
    for name in ("curves-paper.png", f"profile-paper-{FRAMES}.png"):
        assert f"({name})" in text
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "report.json").read_text())
    (group,) = record["groups"]
    assert (group["protocol"], group["frames"], len(group["runs"])) == ("paper", FRAMES, 7)
    # The same runs give the same report.
    run_report(monkeypatch, four_runs, "--out", four_runs.parent / "again")
    for name in ("report.md", "report.json"):
        assert (four_runs.parent / "again" / name).read_bytes() == (out / name).read_bytes()


LONG = "my_module.environments:AVeryLongNameOfAnEnvironment-with-hyphens-v0"


@pytest.mark.parametrize(
    ("games", "variants"),
    [(["pong"], 1), (["breakout", "pong", LONG], 6), ([*PAPER49[:13], LONG], 2)],
    ids=["one", "many methods", "many games"],
)
def test_nothing_of_the_pictures_is_cut(games: list[str], variants: int) -> None:
    methods = [f"ebu network={n}-32-32/256, updates_per_step=0.25" for n in range(variants)]
    frames, shares = np.linspace(1e3, 1e7, 20), np.linspace(1.0, 0.0, 20)
    seeds = [(frames, -1e5 * shares), (frames, 1e6 * shares)]
    profiles = [Profile(name, shares, shares / 2, shares) for name in methods]
    curves = draw_curves({game: dict.fromkeys(methods, seeds) for game in games})
    for figure in (curves, draw_profiles(np.linspace(0.0, 8.0, 20), profiles)):
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == methods
        assert unreadable(figure) == []


TRAVERSING: dict[str, Any] = {
    "game": "CartPole-v1",
    "agent": "ebu",
    "seed": 0,
    "frames": FRAMES,
    "protocol": "x/../../pwned",
}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"settings": {"game": "pong"}, "environment": {}}'),
        ("config.json", json.dumps({"settings": {**TRAVERSING}, "environment": {}})),
        ("metrics.jsonl", "[]\n"),
        ("metrics.jsonl", '{"frames": null}\n'),
        ("evaluation.json", "[]"),
        ("evaluation.json", json.dumps(evaluation(1.0, protocol="atari"))),
        ("evaluation.json", json.dumps(evaluation(1.0, mean=None))),
        ("evaluations/any.json", '{"policy": "agent", '),
    ],
)
def test_a_damaged_run_is_named_and_left_out(
    file: str,
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(tmp_path, "CartPole-v1", "ebu", 0, 1.0)
    broken = write_run(tmp_path, "CartPole-v1", "ebu", 1, 2.0)
    for run_dir in (broken, broken.parent / "CartPole-v1-ebu-seed0"):
        (run_dir / file).parent.mkdir(exist_ok=True)
    (broken / file).write_text(content)
    run_report(monkeypatch, tmp_path)
    warning, *_ = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: left out: {broken / file}")
    (broken.parent / "CartPole-v1-ebu-seed0" / file).write_text(content)
    with pytest.raises(EbuError, match="all 2 run directories are damaged"):
        run_report(monkeypatch, tmp_path)


def test_a_report_writes_nothing_outside_of_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs", "CartPole-v1", "ebu", 0, 1.0)
    theirs = write_run(tmp_path / "runs", "../../pong", "../dqn", 0, None, name="theirs")
    for protocol in ("x/../../../pwned", "paper"):
        config = json.loads((theirs / "config.json").read_text())
        config["settings"]["protocol"] = protocol
        (theirs / "config.json").write_text(json.dumps(config))
        run_report(monkeypatch, tmp_path / "runs", "--out", tmp_path / "deep/out")
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    outside = {path for path in written if not path.is_relative_to(tmp_path / "runs")}
    assert {path.parent for path in outside} == {tmp_path / "deep/out"}
    # Of runs that no directory held, too.
    run = replace(read_run(theirs), settings={**TRAVERSING})
    comparison = Comparison([], [], {"../pwned": {"pong": {"dqn": [run]}}}, {}, [])
    curves = {theirs: learning_curve(theirs)}
    assert write_pictures(comparison, [], curves, tmp_path / "deep/out") == {
        "../pwned": "curves-pwned.png"
    }


def test_dollars_in_names_are_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "pong", "ebu", 0, 1.0)
    write_run(tmp_path, "pong", r"$\no{$", 0, 2.0, name="agent")
    write_run(tmp_path, "$_$-v0", "ebu", 0, 2.0, name="game")
    run_report(monkeypatch, tmp_path)
    for name in ("curves-paper.png", f"profile-paper-{FRAMES}.png"):
        assert (tmp_path / "report" / name).exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.md", "# Reports\n\nA page of my own.\n"),
        ("report.md", ""),
        ("report.json", '{"groups": []}'),
        ("report.json", "5"),
        ("report.json", "groups, unfinished, damaged"),
    ],
)
def test_a_report_takes_the_place_of_no_other_file(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs", "CartPole-v1", "ebu", 0, 1.0)
    out = tmp_path / "out"
    for _ in range(2):
        run_report(monkeypatch, tmp_path / "runs", "--out", out)
    (out / name).write_text(content)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=rf"{name} is no report of report\.py: .* another --out"):
        run_report(monkeypatch, tmp_path / "runs", "--out", out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("where", "named", "report"),
    [
        ("runs/one", ".", "runs/report"),
        (".", "runs/one", "runs/report"),
        ("runs", "one", "runs/report"),
        ("runs/one/sub", "..", "runs/report"),
        ("runs", ".", "runs/report"),
        (".", ".", "report"),
    ],
)
def test_a_report_lies_next_to_a_run_or_in_a_directory_of_runs(
    where: str, named: str, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = write_run(tmp_path / "runs", "CartPole-v1", "ebu", 0, 1.0, name="one")
    (run_dir / "sub").mkdir()
    monkeypatch.chdir(tmp_path / where)
    run_report(monkeypatch, named)
    assert [path.parent for path in tmp_path.rglob("report.md")] == [tmp_path / report]


def test_the_draft_of_an_evaluation_that_was_killed_is_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_run(tmp_path, "CartPole-v1", "ebu", 0, None)
    record = write_evaluation(run_dir, evaluation(3.0))
    record.with_name(f".{record.name}").write_text('{"game": "Cart')
    score = read_run(run_dir).final_score
    assert score is not None
    assert score.mean == 3.0
    run_report(monkeypatch, run_dir)
    assert "left out" not in capsys.readouterr().err


def test_a_damaged_evaluation_names_the_command_that_plays_it_again(tmp_path: Path) -> None:
    for game, trust in (("pong", False), ("a_module:Own-v0", True)):
        run_dir = write_run(tmp_path, game, "ebu", 0, 1.0, name=f"run{trust}")
        (run_dir / "evaluation.json").write_text("{")
        with pytest.raises(EbuError, match=r"score the run again with: .*evaluate\.py ") as error:
            read_run(run_dir)
        assert str(error.value).endswith(" --trust-env") == trust


def test_the_end_of_a_log_is_read_without_a_line_still_being_written(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, "pong", "ebu", 0, None, played=3_000)
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"frames": 40')
    assert learning_curve(run_dir)[0].tolist() == [1_000, 2_000, 3_000]
    assert read_run(run_dir).played_frames == 3_000
    lines = [json.dumps({"frames": frames, "x": "y" * 100}) + "\n" for frames in range(2_000)]
    (run_dir / "metrics.jsonl").write_text("broken\n" + "".join(lines))
    assert read_run(run_dir).played_frames == 1_999
    # A run that was stopped between two lines is scored later than at the last.
    stopped = write_run(tmp_path, "pong", "ebu", 1, 5.0, frames=3_000, played=3_000)
    (stopped / "metrics.jsonl").write_text(json.dumps({"frames": 2_000}) + "\n")
    assert read_run(stopped).played_frames == 3_000


def test_what_cannot_be_reported_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run_dir = write_run(tmp_path / "study", "CartPole-v1", "ebu", 0, 1.0)
    for args, complaint in (
        ([], "name run directories"),
        ([tmp_path / "empty"], "no run directory"),
        ([tmp_path / "none"], "is not a directory"),
        ([run_dir, "--nonsense"], "--nonsense"),
        ([run_dir, "--out", tmp_path / "file"], "is no directory: choose another place"),
    ):
        with pytest.raises(UsageError) as refusal:
            run_report(monkeypatch, *args)
        assert complaint in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(EbuError, match="cannot write"):
        run_report(monkeypatch, run_dir, "--out", tmp_path / "file" / "below")


def test_directories_are_found_once_and_not_inside_runs(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "a", "pong", "ebu", 0, 1.0)
    write_run(run_dir, "pong", "ebu", 1, 1.0, name="copy")
    os.symlink(tmp_path / "a", tmp_path / "b")
    assert find_run_directories([tmp_path, tmp_path / "b", run_dir]) == [run_dir]


def test_a_directory_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_run(tmp_path, "pong", "ebu", 0, 1.0)
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert find_run_directories([tmp_path]) == [run_dir]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {closed} cannot be read, and is left out: Permission denied"


def test_the_output_of_a_distillation_is_no_run(tmp_path: Path) -> None:
    settings = {"students": ["net2"], "run_dirs": ["runs/teacher"]}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings, "environment": {}}))
    with pytest.raises(UsageError, match=r"distill\.py .* name a run"):
        read_run(tmp_path)
