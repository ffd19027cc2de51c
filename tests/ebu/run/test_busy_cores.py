"""A run says that other programs take its cores."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebu.run.busy_cores import note_busy_cores, seconds_without_a_core

linux = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="only Linux says how long threads wait"
)


@pytest.fixture
def another_program_on_this_core() -> Iterator[None]:
    """This process has one core, and another that computes without end has the same."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)


def compute(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


@linux
def test_it_is_said_once(
    another_program_on_this_core: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = seconds_without_a_core()
    with note_busy_cores(2, "type this", every=0.5):
        compute(3)
    assert seconds_without_a_core() - before > 0.5
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 threads" in line
    assert line.endswith("type this")


@linux
def test_one_thread_waits_for_no_other(
    another_program_on_this_core: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with note_busy_cores(1, "type this", every=0.1):
        compute(1)
    assert capsys.readouterr().err == ""


def test_threads_that_have_their_cores_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with note_busy_cores(2, "type this", every=0.5):
        time.sleep(1.2)
    assert capsys.readouterr().err == ""


def test_waits_of_all_threads_count(tmp_path: Path) -> None:
    for thread, waited in (("1", "500 1500000000 3"), ("2", "0 250000000 1"), ("3", "")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(waited)
    assert seconds_without_a_core(tmp_path) == 1.75
    assert seconds_without_a_core(tmp_path / "nothing") == 0
