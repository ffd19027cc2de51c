"""Files are written whole, by one process or by several, and killed ones leave nothing to mend."""

import os
import subprocess
import sys
from pathlib import Path

from ebu.run.files import write_whole

WRITER = """
import sys
from pathlib import Path
from ebu.run.files import write_whole
path, byte, length = Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
for _ in range(150):
    write_whole(path, byte * length)
"""


def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    contents = {"a": 20_000, "b": 300_000}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, byte, str(length)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for byte, length in contents.items()
    ]
    found = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            text = path.read_text()
            found.add((len(text), *sorted(set(text))))
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert found <= {(length, byte) for byte, length in contents.items()}
    assert os.listdir(tmp_path) == ["results.csv"]


def test_the_draft_of_a_killed_process_is_used_again(tmp_path: Path) -> None:
    path, draft = tmp_path / "config.json", tmp_path / ".config.json"
    path.write_text("old")
    draft.write_text("longer than what is written next")
    write_whole(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["config.json"]
