"""A teacher and a distillation of it, made once and not to be changed."""

from pathlib import Path

import pytest

from tests.distillations import distilled, train_teacher


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures."""
    return train_teacher(tmp_path_factory.mktemp("teachers") / "pictures")


@pytest.fixture(scope="session")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    distilled(teacher, out)
    return out
