"""Standard streams that are closed, full or narrow cost no result."""

import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = r"""
import sys
from pathlib import Path
from tqdm import tqdm
from ebu.run.cli import run_command
from ebu.run.progress import Progress, progress_bar, say

def main() -> int:
    result = open(sys.argv[1], "w")
    say("ε \udcff begins")
    with progress_bar("games", 3, "games") as done:
        done(3)
    progress = Progress(10)
    progress.update(10, episode_return=1.0, epsilon=0.5)
    progress.close()
    for number in range(20_000):
        print(f"{number} ± ε é \udcff", file=sys.stderr if number % 100 == 0 else sys.stdout)
    result.write("written")
    result.close()
    return 3

run_command(main)
"""


@pytest.mark.parametrize(
    "redirection",
    [
        *("", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "| head -n 1", "2>&1 | head -n 1"),
        *(">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"),
    ],
)
def test_no_stream_costs_a_result(tmp_path: Path, redirection: str) -> None:
    # The encoding matters to what is shown alone.
    encoding = "ascii" if redirection in ("", "2>&1 | head -n 1") else "utf-8"
    result, code = tmp_path / "result", tmp_path / "code"
    command = f'{{ "$0" -c "$1" "$2"; echo $? >"$3"; }} {redirection}'
    ended = subprocess.run(
        ["bash", "-c", command, sys.executable, PRINTS, str(result), str(code)],
        capture_output=True,
        cwd=Path(__file__).parents[3],
        env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert code.read_text() == "3\n"
    assert result.read_text() == "written"
    assert b"Traceback" not in ended.stdout + ended.stderr
    assert b"Exception" not in ended.stdout + ended.stderr
    if redirection == "":
        assert ended.stdout.splitlines()[-1] == rb"19999 +- eps \xe9 \udcff"
    if redirection == ">/dev/full":
        assert ended.stderr.decode(encoding).endswith("output is cut: No space left on device\n")
