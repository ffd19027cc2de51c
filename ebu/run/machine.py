"""Device, threads and precision of a run: chosen when it starts, kept when it is resumed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ebu.errors import UsageError
from ebu.run.cli import all_cores
from ebu.run.directory import AUTOMATIC, automatic_settings


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


def device_named(name: str) -> torch.device:
    """The device of `--device`: auto is cuda where there is one, else the CPU.

    Raises `UsageError` for a CUDA device that is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no CUDA device here; choose --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; others emulate it, slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older versions of torch do not say.
    ask: Callable[[], dict[str, bool]] = getattr(torch.cpu, "get_capabilities", dict)
    return any(ask().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def prepare_torch(
    device: torch.device, threads: int, *, autotune: bool = False, deterministic: bool = False
) -> None:
    """Set up torch for the whole process: threads, float32 arithmetic, choice of kernels.

    `autotune`: let cuDNN time its kernels and take the fastest. `deterministic`: take only kernels
    that give the same bits every time.
    """
    torch.set_num_threads(threads)
    if device.type != "cuda":
        return
    # float32 means float32: torch would let convolutions round their inputs to TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = autotune and not deterministic
    if deterministic:
        # Read when cuBLAS first computes something.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        # What is allocated here is written before it is read.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
