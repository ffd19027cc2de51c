"""A teacher and a distillation of it, made once and not to be changed."""

import contextlib
from collections.abc import Iterator
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


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What is reported to start: how many, and of what."""
    started: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def recorded(count: int, what: str) -> Iterator[None]:
        started.append((count, what))
        yield

    for module in ("ebu.training", "ebu.evaluation", "ebu.commands.scoring"):
        monkeypatch.setattr(f"{module}.starting", recorded)
    return started
