"""Pieces of a measurement: what fails, hangs or is killed costs nothing but itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.pieces import ERROR_LINES, ROOT, Notes, supervise, tables
from tests.benchmarks.small_pieces import PIECES

MODULE = "tests.benchmarks.small_pieces"


def by_piece(path: Path) -> dict[str, dict[str, Any]]:
    """All that was noted of each piece."""
    found: dict[str, dict[str, Any]] = {}
    for line in Notes(path, 0.0).read():
        found.setdefault(line["piece"], {}).update(line)
    return found


def test_every_piece_is_measured_whatever_happens_to_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", MODULE, str(path)]
    failed = supervise(command, PIECES, path, 5.0, {"cpu": "a processor"})
    assert failed == ["fails", "loses its device", "hangs", "crashes"]
    found = by_piece(path)
    assert list(found) == ["machine", *(piece.name for piece in PIECES)]
    for name in ("works", "works after a failure", "works at the end"):
        assert (found[name]["first"], found[name]["second"]) == (1, 2.5)
        assert found[name]["warning"] == "slow today"
    # A failure keeps its process, a lost device does not.
    processes = [found[name]["process"] for name in found if name.startswith("works")]
    assert processes[0] == processes[1] != processes[2]
    error = found["fails"]["error"].splitlines()
    assert error[-1] == "line 299"
    assert len(error) == ERROR_LINES
    assert found["fails"]["before"] == found["hangs"]["before"] == found["crashes"]["before"] == 1
    assert "CUDA error" in found["loses its device"]["error"]
    # Where it hung.
    assert "in hangs" in found["hangs"]["error"]
    assert "\nstopped after " in found["hangs"]["error"]
    assert found["crashes"]["error"].endswith("on my way\nthe process ended with 7")
    text = "\n".join(tables(Notes(path, 0.0).read()))
    assert "## works\n" in text
    assert "second 2.5" in text


def test_no_piece_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", MODULE, str(path)]
    failed = supervise(command, [PIECES[4]._replace(seconds=60), PIECES[6]], path, 0.05, {})
    assert failed == ["hangs", "works at the end"]
    found = by_piece(path)
    assert found["hangs"]["before"] == 1
    assert "stopped after" in found["hangs"]["error"]
    assert found["works at the end"]["error"] == "no time was left"


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    failed = supervise([sys.executable, "-c", "import nothing_such"], PIECES[:2], path, 1.0, {})
    assert failed == ["works", "fails"]
    assert "No module named 'nothing_such'" in by_piece(path)["works"]["error"]


def test_figures_stay_when_everything_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    measuring = subprocess.Popen(
        [sys.executable, "-m", MODULE, str(path), "0", "works", "hangs"],
        cwd=ROOT,
        process_group=0,
    )
    while "hangs" not in by_piece(path) or "before" not in by_piece(path)["hangs"]:
        assert measuring.poll() is None
        time.sleep(0.05)
    os.killpg(measuring.pid, signal.SIGKILL)
    assert measuring.wait() == -signal.SIGKILL
    assert by_piece(path)["works"]["second"] == 2.5


def test_no_process_outlives_the_one_that_supervises_it(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    program = (
        "import sys; from pathlib import Path; from benchmarks.pieces import supervise; "
        "from tests.benchmarks.small_pieces import PIECES; "
        f"pieces = [PIECES[0], PIECES[4]._replace(seconds=60)]; path = {str(path)!r}; "
        f"supervise([sys.executable, '-m', {MODULE!r}, path], pieces, Path(path), 5.0, {{}})"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while "before" not in by_piece(path).get("hangs", {}):
        assert supervisor.poll() is None
        time.sleep(0.05)
    supervisor.kill()
    supervisor.wait()
    status = Path(f"/proc/{by_piece(path)['works']['process']}/stat")
    ends = time.monotonic() + 30
    # Gone, or a zombie that nobody has waited for.
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < ends
        time.sleep(0.05)
