"""What is recorded of a machine."""

import os
import sys
from pathlib import Path

import pytest

from ebu.run.hardware import all_cores, graphics_card, hardware
from tests.ebu.test_host_memory import write


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows drivers as files")
def test_without_a_driver_there_is_no_card_and_nothing_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert graphics_card() is None
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl")
    with pytest.raises(ImportError):
        graphics_card()


def test_hardware_names_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebu.run.hardware.all_cores", lambda: 3)
    assert ", 3 cores, " in hardware()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),  # a third thread would wait half the time
        ("50000 100000", 1),
        ("900000 100000", 8),  # more than there are
        ("", 8),
    ],
)
def test_a_container_gets_as_many_threads_as_its_quota(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    mount = tmp_path / "sys/fs/cgroup"
    # The smallest of all groups above the process counts.
    write(mount / "outer/inner/cpu.max", "max 100000\n")
    write(mount / "outer/cpu.max", quota + "\n")
    assert all_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(300_000, 3), (-1, 8), (0, 8)])
def test_the_quota_of_the_first_version_of_control_groups(
    quota: int, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(tmp_path / "proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/a\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", f"{quota}\n")
    write(tmp_path / "sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n")
    assert all_cores(tmp_path) == cores
    assert all_cores(tmp_path / "nothing") == 8
