"""The first inputs of `make fuzz`."""

import shutil
import time
from pathlib import Path

from tests.fuzz import FINE, fuzz_commands, fuzz_loaders, make_samples


def test_damaged_files_are_loaded_or_refused_in_one_line(tmp_path: Path) -> None:
    samples = make_samples(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.name != "results.csv"}
    met = fuzz_loaders(samples, range(200), seed=0, until=time.monotonic() + 60)
    assert not met.keys() - FINE
    assert min(met["loaded"], met["refused"]) > 20
    assert {path for path in tmp_path.rglob("*") if path.name != "results.csv"} == before
    shutil.rmtree(tmp_path)


def test_command_lines_are_parsed_or_refused_in_one_line() -> None:
    met = fuzz_commands(range(30), seed=0, until=time.monotonic() + 60)
    assert not met.keys() - FINE
