"""The tables of variants are those of the committed runs."""

import json
from pathlib import Path

import pytest

import docs.results.variants
from docs.results.variants import (
    RESULTS,
    ROOT,
    gain_table,
    rank_table,
    read_runs,
    tables,
    with_tables,
)
from ebu.commands.report import write_report

PAGES = [path for path in sorted(RESULTS.glob("*.md")) if "<!-- variants: " in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_what_its_runs_give(page: Path) -> None:
    assert with_tables(page.read_text()) == page.read_text()


def test_the_reports_are_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for report in RESULTS.glob("*/report/report.md"):
        write_report([report.parents[1].relative_to(ROOT)], tmp_path)
        assert (tmp_path / "report.md").read_text() == report.read_text()


def write_run(
    directory: Path, returns: list[float], values: list[tuple[int, float, float]]
) -> None:
    directory.mkdir()
    evaluation = {
        "returns": returns,
        "capped_games": int(returns[0]),
        "trained_frames": values[-1][0],
    }
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [
        json.dumps({"frames": frames, "q/predicted": predicted, "q/earned": earned})
        for frames, predicted, earned in values
    ]
    (directory / "metrics.jsonl").write_text("\n".join(lines))


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    """A run of each name whose games all have the same score."""
    for name, score in scores.items():
        write_run(folder / name, [score, score], [(20_000, 0, 0)])


def test_a_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "pong-ebu-a-seed0", [1.0, 3.0], [(1_000, 9, 9), (101_000, 1, 3)])
    write_run(tmp_path / "pong-ebu-a-seed1", [4.0, 4.0], [(20_000, 2, 5), (25_000, 4, 7)])
    write_run(tmp_path / "pong-dqn-b-seed0", [1.0, 3.0], [(20_000, 0, 0)])
    monkeypatch.setattr(docs.results.variants, "AGENTS_100K", ())
    lines = tables(tmp_path).splitlines()
    # Of means 2 and 4: 3 +- 12.706 * sqrt(2) / sqrt(2); of games 1 and 3: 2 +- 12.706.
    assert "| `ebu-a` | 3 [-10, 16] (2 seeds) |" in lines
    assert "| `dqn-b` | 2 [-11, 15] |" in lines
    # Predicted 1 and the mean of 2 and 4; earned 3 and the mean of 5 and 7; 1 and 4 games cut.
    assert "| `ebu-a` | 2.0 / 4.5, 2.5 cut |" in lines
    assert "| random play | -21 |" in lines


def test_published_agents_stand_only_next_to_runs_of_their_length(tmp_path: Path) -> None:
    write_run(tmp_path / "pong-ebu-a-seed0", [1.0, 3.0], [(400_028, 0, 0)])
    assert "| DER, published | -19 |" in tables(tmp_path)
    write_run(tmp_path / "pong-ebu-a-seed1", [1.0, 3.0], [(1_000_004, 0, 0)])
    assert "published" not in tables(tmp_path)


def test_ranks_by_hand(tmp_path: Path) -> None:
    scores = {
        "pong-ebu-a-seed0": 3.0,
        "pong-ebu-b-seed0": 5.0,
        "pong-ebu-c-seed0": -1.0,
        "boxing-ebu-a-seed1": 2.0,
        "boxing-ebu-b-seed1": 2.0,
        "boxing-ebu-c-seed1": 4.0,
        # Not played with c: no ranks.
        "boxing-ebu-a-seed0": 9.0,
        "boxing-ebu-b-seed0": 1.0,
    }
    write_scores(tmp_path, scores)
    assert rank_table(read_runs(tmp_path)).splitlines()[2:-1] == [
        "|  | mean | `boxing`, seed 1 | `pong`, seed 0 |",
        "| --- | --- | --- | --- |",
        "| `ebu-b` | 1.8 | 2.5 | 1 |",
        "| `ebu-c` | 2.0 | 1 | 3 |",
        "| `ebu-a` | 2.2 | 2.5 | 2 |",
    ]
    write_run(tmp_path / "pong-ebu-d-seed1", [0.0, 0.0], [(20_000, 0, 0)])
    assert not rank_table(read_runs(tmp_path))


def test_gains_by_hand(tmp_path: Path) -> None:
    scores = {
        "pong-ebu-base-seed0": -21.0,
        "pong-ebu-base-seed1": -19.0,  # Third of six, by the mean of both.
        "pong-ebu-all-seed0": 14.0,
        "pong-ebu-shift-seed0": 0.0,
        "pong-ebu-no_shift-seed0": -20.5,
        "pong-ebu-noisy-seed0": -20.7,
        "pong-ebu-no_noisy-seed0": 15.0,
        "boxing-ebu-base-seed0": 0.0,
        "boxing-ebu-all-seed0": 4.0,
        "boxing-ebu-shift-seed0": 1.0,
        "boxing-ebu-no_shift-seed0": 2.0,
        "boxing-ebu-noisy-seed0": 3.0,
        "boxing-ebu-no_noisy-seed0": 5.0,
        # Without the other variants a game does not count.
        "freeway-ebu-base-seed0": 9.0,
        "freeway-ebu-shift-seed0": 0.0,
    }
    write_scores(tmp_path, scores)
    assert gain_table(read_runs(tmp_path)).splitlines()[3:-1] == [
        "|  | added | left out | added, score | left out, score | kept |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `noisy` | +0.10 [-6.25, +6.45] | -0.20 [-0.20, -0.20] "
        "| +0.12 [-1.60, +1.83] | -0.06 [-0.41, +0.29] | no |",
        "| `shift` | +0.20 [+0.20, +0.20] | +0.50 [-0.77, +1.77] "
        "| +0.32 [-2.75, +3.40] | +0.57 [-4.58, +5.72] | yes |",
    ]


def test_gains_that_cancel_keep_no_ingredient(tmp_path: Path) -> None:
    # Scores are ranks; those of shift less those of base are 1, 2 and -3.
    variants = ("base", "shift", "no_shift", "all", "noisy", "no_noisy")
    ranks = {"pong": "012345", "boxing": "021345", "freeway": "301245"}
    for game, of_game in ranks.items():
        scores = map(float, of_game)
        names = (f"{game}-ebu-{variant}-seed0" for variant in variants)
        write_scores(tmp_path, dict(zip(names, scores, strict=True)))
    (line,) = (line for line in gain_table(read_runs(tmp_path)).splitlines() if "`shift`" in line)
    assert line.startswith("| `shift` | +0.00 [")
    assert line.endswith("| no |")


def test_no_gains_without_ingredients(tmp_path: Path) -> None:
    write_run(tmp_path / "pong-ebu-base-seed0", [1.0, 1.0], [(20_000, 0, 0)])
    assert not gain_table(read_runs(tmp_path))
