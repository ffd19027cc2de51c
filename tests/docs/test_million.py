"""The comparison of the defaults is that of the committed runs."""

import json
from pathlib import Path

from docs.results.million import PAGE, tables, with_tables


def test_the_page_shows_what_its_runs_give() -> None:
    assert with_tables(PAGE.read_text()) == PAGE.read_text()


def write_evaluation(path: Path, *returns: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"returns": returns, "human_normalised": 0.5}))


def test_tables_by_hand(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "data/pong-ebu-seed0.evaluation.json", 1.0, 3.0)
    write_evaluation(tmp_path / "million_former/pong-ebu-former-seed1/evaluation.json", 4.0, 4.0)
    write_evaluation(tmp_path / "million/pong-ebu-seed0/evaluation.json", 6.0, 6.0)
    write_evaluation(tmp_path / "million/pong-ebu-seed7/evaluation.json", 8.0, 8.0)
    write_evaluation(tmp_path / "million/breakout-ebu-seed0/evaluation.json", 2.0, 2.0)
    lines = tables(tmp_path).splitlines()
    # Of games 1 and 3: 2 +- 12.706.
    assert "| Pong | former | 0 | 2.00 [-10.71, 14.71] | 50.0 % |" in lines
    assert "| Pong | today's | 7 | 8.00 [8.00, 8.00] | 50.0 % |" in lines
    # Means 2 and 4, 6 and 8: 4 +- 4.303 * sqrt(2), with two degrees of freedom.
    assert ("| Pong | 3.00 [-9.71, 15.71] | 7.00 [-5.71, 19.71] | +4.00 [-2.08, 10.08] |") in lines
    assert "| Breakout | – | 2.00 | – |" in lines
