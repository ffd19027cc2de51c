"""The control groups of Linux that limit this process, as containers and batch systems set them."""

from pathlib import Path

ROOT = Path("/")


def control_groups(controller: str, root: Path = ROOT) -> list[tuple[Path, int]]:
    """The directories of all groups above this process, each with the version of its files.

    | argument | meaning |
    | --- | --- |
    | controller | `memory` or `cpu` |
    | root | where `proc` and `sys` are mounted |

    Of version 1 are the groups of a controller's own mount, of version 2 those that all share.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mount, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            mount, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        # Inside a container the group's path may not exist under the mount; its root does.
        path = mount / group.lstrip("/")
        found += [(each, version) for each in (path, *path.parents) if each.is_relative_to(mount)]
    return found
