"""Backward targets on a GPU: the kernel, and the scan that stands in for it."""

import importlib.util
import os
import subprocess
import sys
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


@needs_triton
def test_the_kernel_compiles_for_gpus_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ebu import sweep_kernel

    kernel = sweep_kernel._sweep
    of_the_call = {
        "VALUE": triton.language.float32,
        "ONE_STEP": triton.language.float32,
        "ACTIONS": 18,
        "UNROLLED": 18,
    }
    pointers = {
        "targets": "*fp32",
        "rewards": "*fp32",
        "values": "*fp32",
        "actions": "*i64",
        "terminated": "*u1",
        "lengths": "*i64",
        "betas": "*fp64",
        "gamma": "fp64",
        "beta": "fp64",
    }
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(of_the_call, "constexpr")
    for capability in (80, 90):
        compiled = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=of_the_call),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": sweep_kernel._WARPS, "enable_fp_fusion": False},
        )
        # A fused multiplication and addition would be rounded once.
        assert "fma." not in compiled.asm["ptx"]


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
    torch.cuda.set_sync_debug_mode("error")
    try:
        targets()
    finally:
        torch.cuda.set_sync_debug_mode("default")
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
