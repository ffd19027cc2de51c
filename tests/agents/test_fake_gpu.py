"""Every agent on tensors that claim to lie on a GPU: no device mismatch, no wait inside a graph.

Shapes, dtypes and devices of all operations are followed, and nothing is computed
(`FakeTensorMode`). Not covered: the backward pass, none of whose operations is ours; pinned memory
and events; what a capture forbids beyond copies and waits; kernels, and so every value.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SOME = "[ebu-float32] or found"
ROOT = Path(__file__).resolve().parents[2]
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
"""
"""What torch asks to change devices; builds for the CPU have none for CUDA."""


@pytest.mark.skipif(torch.version.cuda is not None, reason="its guard of devices wants a GPU")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build a guard of devices")
@pytest.mark.parametrize(
    "cases", [SOME, pytest.param("", marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_agents_stay_on_their_gpu(cases: str, tmp_path: Path) -> None:
    source, library, of_torch = tmp_path / "guard.cpp", tmp_path / "guard.so", torch.__path__[0]
    source.write_text(GUARD)
    compiler = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{of_torch}/include"]
    subprocess.run([*compiler, source, f"-L{of_torch}/lib", "-lc10", "-o", library], check=True)
    script = Path(__file__).with_name("fake_gpu_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", script, "-k", cases],
        cwd=ROOT,
        env={**os.environ, "DEVICE_GUARD": str(library)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
