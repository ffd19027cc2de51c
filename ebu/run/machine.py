"""Device, threads and precision of a run: chosen when it starts, kept when it is resumed."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ebu.errors import UsageError
from ebu.run.directory import AUTOMATIC, automatic_settings
from ebu.run.hardware import all_cores, spared_threads
from ebu.subnormals import flush_subnormals

ENVIRONMENTS = {"cpu": 8, "cuda": 64}
"""Environments of a training run, by kind of device: fewer keep a GPU waiting for the host."""


@dataclass(frozen=True)
class Machine:
    """A choice of device, threads and precision.

    | field | meaning |
    | --- | --- |
    | threads | of the emulators, and of torch unless `torch_threads` says otherwise |
    | torch_threads | on a GPU one, which only launches, unless --threads asks for more |
    | precision | float32, tf32 or bfloat16 |
    | automatic | settings that were automatic when the run started: they alone may change |
    | warnings | what the user should know of the choice, one line each |
    """

    device: torch.device
    threads: int
    torch_threads: int
    precision: str
    automatic: list[str]
    warnings: list[str]

    def settings(self) -> dict[str, Any]:
        """The choice by the names of its settings, as config.json holds it."""
        return {"device": self.device.type, "threads": self.threads, "precision": self.precision}


def choose_machine(
    device: str,
    threads: int,
    precision: str,
    before: Mapping[str, Any] | None,
    *,
    processes: int = 1,
) -> Machine:
    """Choose what is left automatic: as the run was started with, where this machine has it.

    | argument | meaning |
    | --- | --- |
    | device, threads, precision | as asked for; see `AUTOMATIC` |
    | before | config.json of the run to resume; None for a new one |
    | processes | of the run on this machine, which share its cores |

    Raises `UsageError` for a device that is not there, and for a new run in a precision that the
    device does not have.
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
    asked_threads = threads
    if not threads:
        threads = automatic_threads(chosen, processes)
        known = recorded.get("threads")
        # More threads than cores only where they were asked for.
        cores = max(1, all_cores() // processes)
        if isinstance(known, int) and (known <= cores or "threads" not in automatic):
            threads = known
    if precision == "auto":
        precision = recorded.get("precision") or ("bfloat16" if has_bfloat16(chosen) else "float32")

    if precision == "tf32" and before is None and not has_tf32(chosen):
        raise UsageError(
            "--precision tf32: only GPUs from Ampere (2020) on compute in it; choose float32, or "
            "bfloat16"
        )

    machine = Machine(
        chosen, threads, torch_threads(asked_threads, threads, chosen), precision, automatic, []
    )
    if precision == "tf32" and not has_tf32(chosen):
        machine.warnings.append("this device has no tf32: float32 is computed in full, and slower")
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


def automatic_threads(device: torch.device, processes: int = 1) -> int:
    """The threads of `--threads 0`: one core is left free, except for emulators that feed a GPU."""
    if device.type == "cuda":
        return max(1, all_cores() // processes)
    return spared_threads(all_cores(), processes)


def torch_threads(asked: int, threads: int, device: torch.device) -> int:
    """Threads of torch: `threads`, but on a GPU one, which only launches, unless asked for."""
    return threads if asked or device.type != "cuda" else 1


def choose_num_envs(num_envs: int, device: torch.device, before: Mapping[str, Any] | None) -> int:
    """The environments of a run: as asked for, as it was started with, or what suits the device.

    `num_envs` is 0 where the choice is left to the program; `before` as in `choose_machine`.
    """
    recorded = before["settings"].get("num_envs") if before else None
    return num_envs or recorded or ENVIRONMENTS[device.type]


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


def has_tf32(device: torch.device) -> bool:
    """Whether the device can round the factors of float32 products to 10 bits, which is faster."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def prepare_torch(
    device: torch.device,
    threads: int,
    *,
    precision: str = "float32",
    autotune: bool = False,
    deterministic: bool = False,
) -> None:
    """Set up torch for the whole process: threads, float32 arithmetic, choice of kernels.

    `autotune`: let cuDNN time its kernels and take the fastest. `deterministic`: take only kernels
    that give the same bits every time.
    """
    torch.set_num_threads(threads)
    if device.type != "cuda":
        # Torch's own threads start here, before an optimizer needs them, and stay as they started.
        with flush_subnormals():
            torch.zeros(threads << 16).add_(1)
        return
    _allow_tf32(precision == "tf32", precision == "tf32")
    torch.backends.cudnn.benchmark = autotune and not deterministic
    if deterministic:
        # Read when cuBLAS first computes something.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        # What is allocated here is written before it is read.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute products of float32 in this precision, whatever the process has been set to."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(precision == "tf32", precision == "tf32")
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(convolutions: bool, products: bool) -> None:
    """float32 means float32: torch itself lets convolutions round their inputs to TF32."""
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
