"""Backward targets on a GPU: the kernel, and the scan that stands in for it."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from ebu.targets import (
    _sweep_kernel,
    backward_targets,
    backward_targets_loop,
    backward_targets_scan,
)
from tests.ebu.test_targets import (
    BETAS,
    assert_close,
    largest_input,
    padded,
    random_problem,
    unit,
)

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_triton
@pytest.mark.parametrize(
    "interpreted", [True, pytest.param(False, marks=needs_gpu)], ids=["interpreter", "gpu"]
)
def test_the_cases_of_the_kernel(interpreted: bool) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    environment["TRITON_INTERPRET"] = "1" if interpreted else "0"
    cases = Path(__file__).with_name("kernel_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


class NoDevice:
    """Stands in for the driver of a GPU: kernels are built for it, loaded and launched nowhere."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.launches = 0
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 100_000},
            load_binary=lambda *_: (object(), 0, 0, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(*_: Any) -> None:
            self.launches += 1

        return launch


@needs_triton
@pytest.mark.parametrize(("capability", "forms"), [(90, 3), (80, 1)])
def test_the_kernel_builds_for_gpus_without_one(
    capability: int, forms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the way of a call: its arguments are typed, compiled for and bound as on a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.runtime import driver

    from ebu import sweep_kernel

    kernel = sweep_kernel._sweep
    device = NoDevice(capability)
    monkeypatch.setattr(driver, "_active", device)
    monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
    problem = random_problem(batch=(3,), num_actions=18)
    betas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    bfloat16 = {**problem, "next_values": problem["next_values"].bfloat16()}
    calls: list[tuple[dict[str, Any], Any, Any]] = [
        (problem, 0.5, torch.tensor([1, 5, 9])),  # as EBU calls it
        (problem, betas, torch.tensor([1, 5, 9])),  # as adaptive EBU does
        (bfloat16, 0.5, None),
    ]
    for arguments, beta, lengths in calls[:forms]:
        sweep_kernel.sweep(**arguments, gamma=0.99, beta=beta, lengths=lengths)
    assert device.launches == forms
    compiled = list(kernel.device_caches[0][0].values())
    assert len(compiled) == forms
    for each in compiled:
        assert f".target sm_{capability}" in each.asm["ptx"]
        # A fused multiplication and addition would be rounded once.
        assert "fma." not in each.asm["ptx"]
        assert each.asm["cubin"]


@given(padded(), unit, BETAS)
@settings(max_examples=100, deadline=None)
def test_scan_equals_loop(case: Any, gamma: float, beta: float) -> None:
    problem, lengths = case
    beta = beta if isinstance(beta, float) else beta.clamp(min=1e-3)
    scan = backward_targets_scan(**problem, gamma=gamma, beta=beta, lengths=lengths)
    loop = backward_targets_loop(**problem, lengths=lengths, gamma=gamma, beta=beta)
    assert_close(scan, loop, largest_input(problem, beta))


def find_kernel() -> Any:
    """As if for the first time."""
    return _sweep_kernel.__wrapped__(torch.device("cpu"))


def test_without_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ebu.sweep_kernel", None)
    assert find_kernel() is None


def test_where_triton_cannot_build_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setitem(sys.modules, "ebu.sweep_kernel", SimpleNamespace(sweep=no_compiler))
    with pytest.warns(UserWarning, match=r"cannot build .*find C compiler\.\), so") as warned:
        assert find_kernel() is None
    assert "\n" not in str(warned[0].message)


@needs_triton
@needs_gpu
@pytest.mark.parametrize("steps", [1, 45, 2048, 32_768])
@pytest.mark.parametrize("learners", [1, 3, 11])
def test_kernel_scan_and_loop_agree_on_a_gpu(steps: int, learners: int) -> None:
    lead = () if learners == 1 else (learners,)
    problem = random_problem(lead, batch=(), steps=steps, num_actions=18)
    beta: Any = 0.5 if learners == 1 else torch.linspace(0.05, 1.0, learners, dtype=torch.float64)
    loop = backward_targets_loop(**problem, gamma=0.99, beta=beta)
    there = {name: tensor.cuda() for name, tensor in problem.items()}
    beta = beta if isinstance(beta, float) else beta.cuda()
    kernel = backward_targets(**there, gamma=0.99, beta=beta)
    scan = backward_targets_scan(**there, gamma=0.99, beta=beta)
    assert_close(kernel.cpu(), loop)
    torch.testing.assert_close(kernel, scan, rtol=1.2e-7, atol=1e-8)


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Whatever waits for the GPU raises."""
    with warnings.catch_warnings():
        # Setting the mode warns that it is a prototype.
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_triton
@needs_gpu
def test_captured_in_a_cuda_graph_without_waiting_for_the_device() -> None:
    device = torch.device("cuda")
    problem = {name: each.to(device) for name, each in random_problem(batch=(), steps=64).items()}
    lengths = torch.tensor(45, device=device)

    def targets() -> Any:
        return backward_targets(**problem, lengths=lengths, gamma=0.99, beta=0.5)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        targets()
    torch.cuda.current_stream().wait_stream(stream)
    with refusing_to_wait():
        targets()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        captured = targets()
    for seed, length in ((1, 1), (2, 64), (3, 30)):
        for name, each in random_problem(batch=(), steps=64, seed=seed).items():
            problem[name].copy_(each)
        lengths.fill_(length)
        graph.replay()
        assert torch.equal(captured, targets())
        assert not bool(captured[length:].any())
