"""What counts as free memory, and where threads allocate."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ebu.host_memory import _control_groups, _kernel

GB = 1 << 30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(directory: Path, limit: str, usage: int, inactive: int) -> None:
    write(directory / "memory.max", limit)
    write(directory / "memory.current", str(usage))
    write(directory / "memory.stat", f"anon 17\ninactive_file {inactive}\nactive_file 5\n")


def test_kernel_says_what_is_available(tmp_path: Path) -> None:
    write(tmp_path / "meminfo", "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    5 kB\n")
    assert _kernel(tmp_path / "meminfo") == 5 * 1024
    assert _kernel(tmp_path / "absent") is None


def test_every_group_above_the_process_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    mount = tmp_path / "sys/fs/cgroup"
    group(mount / "outer/inner", "max\n", 1 * GB, 0)
    group(mount / "outer", f"{8 * GB}\n", 5 * GB, 2 * GB)
    # Pages of files that are not in use are given back.
    assert _control_groups(tmp_path) == [5 * GB]


def test_inside_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/../elsewhere\n")
    group(tmp_path / "sys/fs/cgroup", f"{4 * GB}\n", 1 * GB, 0)
    assert _control_groups(tmp_path) == [3 * GB]


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/a\n0::/a\n")
    directory = tmp_path / "sys/fs/cgroup/memory/a"
    write(directory / "memory.limit_in_bytes", str(6 * GB))
    write(directory / "memory.usage_in_bytes", str(2 * GB))
    write(directory / "memory.stat", "cache 1\ninactive_file 0\n")
    assert _control_groups(tmp_path) == [4 * GB]


THREADS = """
import re, threading
from pathlib import Path
from ebu.host_memory import share_one_heap

def heaps_of_threads():
    # glibc's lie at multiples of 64 MiB.
    maps = Path("/proc/self/maps").read_text()
    maps = re.findall(r"^([0-9a-f]+)-[0-9a-f]+ rw-p 0+ 00:00 0 *$", maps, re.M)
    return sum(int(start, 16) % (64 << 20) == 0 for start in maps)

def allocate():
    barrier.wait()
    kept.append([bytes(5_000) for _ in range(100)])

share_one_heap()
before, kept, barrier = heaps_of_threads(), [], threading.Barrier(4)
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(heaps_of_threads() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_threads_share_one_heap() -> None:
    def more_heaps(code: str) -> int:
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return int(printed.stdout)

    assert more_heaps(THREADS) == 0
    assert more_heaps(THREADS.replace("share_one_heap()\n", "\n")) > 0
