"""One precision for all runs of a study: runs in float32 and in bfloat16 do not compare."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ebu.commands.studying.plan import PlannedRun
from ebu.errors import EbuError, UsageError
from ebu.run.directory import CONFIG, read_config


def precisions_in(*folders: Path) -> list[str]:
    """Precisions of all runs and results in these directories; damaged ones are passed over."""
    found = set()
    for path in (path for folder in folders for path in folder.glob(f"*/{CONFIG}")):
        with contextlib.suppress(EbuError):
            settings = read_config(path.parent)["settings"]
            found.add(str(settings.get("precision", "float32")))
    return sorted(found)


def one_precision(found: Sequence[str], where: Path) -> str | None:
    """The precision of a table, of those in it; None without any. Raises `UsageError` for several.

    `where`: directory of the table.
    """
    if len(found) > 1:
        raise UsageError(
            f"{where} has runs in {' and '.join(found)}: a table has one precision; move those of "
            "one away"
        )
    return found[0] if found else None


def in_one_precision(
    planned: Sequence[PlannedRun], found: str | None, where: Path
) -> list[PlannedRun]:
    """The runs in the precision of those that exist already, or in the one asked for.

    | argument | meaning |
    | --- | --- |
    | planned | what is to be played |
    | found | precision of the runs that exist already; None without any |
    | where | directory of the table |

    Raises `UsageError` where they cannot be played in the precision of the table, or were asked for
    in `auto` and this machine would take another: to name it is to confirm it.
    """
    from ebu.run.machine import device_named, has_bfloat16

    asked = {run.config.precision for run in planned}
    if len(asked) > 1:
        raise UsageError("variants in different --precision: a table has one; make two studies")
    if not asked:
        return []
    (precision,) = asked
    automatic = precision == "auto"
    if automatic:
        has = has_bfloat16(device_named(planned[0].config.device))
        precision = "bfloat16" if has else "float32"
    if found not in (None, precision):
        if automatic:
            slow = "" if has else ", where bfloat16 is emulated and slower"
            raise UsageError(
                f"{where} is in {found}, auto takes {precision} on this machine{slow}: add -- "
                f"--precision {found} to play the rest in {found}"
            )
        raise UsageError(
            f"{where} is in {found}, these runs are asked for in {precision}: add "
            f"-- --precision {found}, or choose another directory"
        )
    return [
        replace(
            run,
            config=replace(run.config, precision=precision),
            flags=(*run.flags, *(("--precision", precision) if automatic else ())),
        )
        for run in planned
    ]
