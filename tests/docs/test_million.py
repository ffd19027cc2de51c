"""The comparison of the defaults is that of the committed runs."""

import json
from pathlib import Path

import pytest

import docs.results.million
from docs.results.million import (
    EARLY_AGENTS,
    PAGES,
    POINTS,
    comparison,
    early,
    learning,
    scores,
    with_tables,
)


def test_the_pages_show_what_the_runs_give() -> None:
    for page in PAGES:
        assert with_tables(page.read_text()) == page.read_text()


def write_evaluation(path: Path, *returns: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"returns": returns, "human_normalised": 0.5}))


def test_tables_by_hand(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "data/pong-ebu-seed0.evaluation.json", 1.0, 3.0)
    write_evaluation(tmp_path / "million_former/pong-ebu-former-seed1/evaluation.json", 4.0, 4.0)
    write_evaluation(tmp_path / "million/pong-ebu-seed0/evaluation.json", 6.0, 6.0)
    write_evaluation(tmp_path / "million/pong-ebu-seed7/evaluation.json", 8.0, 8.0)
    write_evaluation(tmp_path / "million/breakout-ebu-seed0/evaluation.json", 2.0, 2.0)
    write_evaluation(tmp_path / "million/breakout-dqn-seed0/evaluation.json", 1.0, 1.0)
    lines = [*scores(tmp_path).splitlines(), *comparison(tmp_path).splitlines()]
    # Of games 1 and 3: 2 +- 12.706.
    assert "| Pong | `ebu`, first default | 0 | 2.00 [-10.71, 14.71] | 50.0 % |" in lines
    assert "| Pong | `ebu`, second default | 7 | 8.00 [8.00, 8.00] | 50.0 % |" in lines
    assert "| Breakout | `dqn`, today's default | 0 | 1.00 [1.00, 1.00] | 50.0 % |" in lines
    # Means 2 and 4, 6 and 8: 4 +- 4.303 * sqrt(2), with two degrees of freedom.
    assert (
        "| Pong | 2 and 2 | 3.00 [-9.71, 15.71] | 7.00 [-5.71, 19.71] | +4.00 [-2.08, 10.08] |"
        in lines
    )
    assert "| Breakout | 0 and 1 | – | 2.00 | – |" in lines


def write_curve(path: Path, *means: float) -> None:
    path.parent.mkdir(parents=True)
    lines = zip(POINTS, means, strict=True)
    # Vector steps end a little after the points.
    text = "".join(json.dumps({"frames": at + 28, "mean": mean}) + "\n" for at, mean in lines)
    path.write_text(text)


def test_learning_by_hand(tmp_path: Path) -> None:
    write_curve(tmp_path / "million/pong-ebu-seed2/evaluations.jsonl", *range(10))
    write_curve(tmp_path / "million/pong-ebu-seed0/evaluations.jsonl", *range(2, 12))
    lines = learning(tmp_path).splitlines()
    assert "| Pong | 2 | 0.0 | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 | 6.0 | 7.0 | 8.0 | 9.0 |" in lines
    # At 400,000 frames 5 and 3: 4 +- 12.706.
    published = "-19.3 | 1.3 | -18.49 | -9.06 | -5.41 | 2.9 | 16.7 | -5.0 | 11.28 | 20.36"
    assert f"| Pong | {published} | 4.00 [-8.71, 16.71] |" in lines
    assert not [line for line in lines if "Breakout" in line]


def test_medians_of_published_returns_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "early.csv"
    # Random play scores -20.7 on Pong and 1.7 on Breakout, a human 14.6 and 30.5.
    rows = {"pong": "14.6", "breakout": "1.7", "boxing": "6.1"}
    header = ",".join(f"{agent}|1-2M" for agent in EARLY_AGENTS)
    lines = [f"game,{header}", *(",".join([game] + [of] * 6) for game, of in rows.items())]
    table.write_text("\n".join(lines))
    monkeypatch.setattr(docs.results.million, "EARLY", table)
    *_, pong, middle = early(["pong"]).splitlines()
    assert pong == "| Pong |" + " 14.6 |" * 6
    # Shares of the human's score: 1, 0 and (6.1 - 0.1) / (12.1 - 0.1).
    assert middle == "| median of 3 games, human-normalised |" + " 50.0% |" * 6
