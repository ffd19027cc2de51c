"""Nothing lets numpy unpickle. Ruff bans the modules that unpickle; no rule knows this argument."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("ebu", "agents", "envs") for path in (ROOT / package).rglob("*.py")]


def lets_numpy_unpickle(source: str) -> bool:
    """Whether a call passes `allow_pickle`, other than as False."""
    return any(
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_lets_numpy_unpickle(path: Path) -> None:
    assert not lets_numpy_unpickle(path.read_text(encoding="utf-8"))


def test_the_check_sees_the_argument() -> None:
    assert lets_numpy_unpickle("import numpy as np\nnp.load('a.npy', allow_pickle=True)")
    assert not lets_numpy_unpickle("import numpy as np\nnp.load('a.npy', allow_pickle=False)")
