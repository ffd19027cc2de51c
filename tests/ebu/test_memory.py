"""What counts as free memory."""

from pathlib import Path

from ebu.memory import _control_groups, _kernel

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
