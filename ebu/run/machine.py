"""Device, threads and precision of a run: chosen when it starts, kept when it is resumed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ebu.run.cli import all_cores, device_named, has_bfloat16

AUTOMATIC: Mapping[str, Any] = {"device": "auto", "precision": "auto", "threads": 0}
"""What leaves the choice of each setting to the program."""
_BEFORE_RECORDED = ("device", "threads")
"""Taken as automatic in runs whose config.json does not say what was."""


@dataclass(frozen=True)
class Machine:
    """A choice of device, threads and precision.

    | field | meaning |
    | --- | --- |
    | precision | float32 or bfloat16 |
    | automatic | settings that were automatic when the run started: they alone may change |
    | warnings | what the user should know of the choice, one line each |
    """

    device: torch.device
    threads: int
    precision: str
    automatic: list[str]
    warnings: list[str]

    def settings(self) -> dict[str, Any]:
        """The choice by the names of its settings, as config.json holds it."""
        return {"device": self.device.type, "threads": self.threads, "precision": self.precision}


def automatic_settings(config: Mapping[str, Any]) -> list[str]:
    """Which settings were automatic when the run of this config.json started."""
    return list(config.get("automatic", _BEFORE_RECORDED))


def choose_machine(
    device: str, threads: int, precision: str, before: Mapping[str, Any] | None
) -> Machine:
    """Choose what is left automatic: as the run was started with, where this machine has it.

    | argument | meaning |
    | --- | --- |
    | device, threads, precision | as asked for; see `AUTOMATIC` |
    | before | config.json of the run to resume; None for a new one |

    Raises `UsageError` for a device that is not there.
    """
    asked = {"device": device, "precision": precision, "threads": threads}
    if before is None:
        recorded: Mapping[str, Any] = {}
        automatic = [name for name, value in asked.items() if value == AUTOMATIC[name]]
    else:
        recorded = before["settings"]
        automatic = automatic_settings(before)

    if device == "auto" and recorded.get("device") == "cpu":
        device = "cpu"
    chosen = device_named(device)
    if not threads:
        threads = all_cores()
        known = recorded.get("threads")
        # More threads than cores only where they were asked for.
        if isinstance(known, int) and (known <= threads or "threads" not in automatic):
            threads = known
    if precision == "auto":
        precision = recorded.get("precision") or ("bfloat16" if has_bfloat16(chosen) else "float32")

    machine = Machine(chosen, threads, precision, automatic, [])
    if precision == "bfloat16" and not has_bfloat16(chosen):
        machine.warnings.append(
            "no bfloat16 instructions here: it is emulated, and slower than float32"
        )
    for name, now in machine.settings().items():
        was = recorded.get(name, now)
        if name in automatic and was != now:
            machine.warnings.append(
                f"{name} was {was}, is {now} here: from now on the last bits may differ from those "
                "of a run that was never moved"
            )
    return machine
