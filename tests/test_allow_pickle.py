"""Nothing lets numpy unpickle. Ruff bans the modules that unpickle; no rule knows this argument."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lets_numpy_unpickle(source: str) -> bool:
    """Whether a call passes `allow_pickle`, other than as False."""
    return any(
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        for node in ast.walk(ast.parse(source))
    )


def test_no_file_lets_numpy_unpickle() -> None:
    sources = [path for name in ("ebu", "agents", "envs") for path in (ROOT / name).rglob("*.py")]
    assert [path for path in sources if lets_numpy_unpickle(path.read_text("utf-8"))] == []


def test_the_check_sees_the_argument() -> None:
    assert lets_numpy_unpickle("import numpy as np\nnp.load('a.npy', allow_pickle=True)")
    assert not lets_numpy_unpickle("import numpy as np\nnp.load('a.npy', allow_pickle=False)")
