"""The shape of the project: who imports whom, what is typed, what is documented."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ebu", "agents", "envs")
SCRIPTS = tuple(sorted(path.stem for path in ROOT.glob("*.py")))
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# The roof of the house puts the three packages together.
ROOF = ROOT / "ebu" / "commands"

# What each package may import of this project: itself, and what the architecture draws.
ALLOWED = {"ebu": {"ebu"}, "agents": {"agents", "ebu"}, "envs": {"envs"}}
# Modules whose loading runs code found in a file.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Absolute names of every module a file imports, wherever in it, imported names included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rpartition(".")[2]
            argument = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(argument, ast.Constant):
                yield str(argument.value)


def forbidden_imports(tree: ast.AST, package: str) -> set[str]:
    """What a file of `package` imports of this project against the architecture."""
    ours = {*PACKAGES, *SCRIPTS, "tests", "benchmarks", "studies"}
    tops = {module.partition(".")[0] for module in imported_modules(tree)}
    return (tops & ours) - ALLOWED[package]


def unsafe_loading(tree: ast.AST) -> set[str]:
    """Pickle by any of its names, `torch.load` and `torch.save`, numpy's `allow_pickle`."""
    found = {
        module for module in imported_modules(tree) if module.partition(".")[0] in UNSAFE_MODULES
    }
    found |= {module for module in imported_modules(tree) if module in {"torch.load", "torch.save"}}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "torch.save"}:
            found.add(ast.unparse(node))
        elif (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ):
            found.add("allow_pickle")
    return found


def undocumented(tree: ast.Module) -> list[str]:
    """The module itself, its public classes and functions, where they lack a docstring."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            missing.append(node.name)
    return missing


def name_of(path: Path) -> str:
    """A source file by its path from the root, for the names of the tests."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if ROOF not in path.parents], ids=name_of
)
def test_a_file_imports_in_the_drawn_direction_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert forbidden_imports(ast.parse(path.read_text(encoding="utf-8")), package) == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_never_unpickles(path: Path) -> None:
    assert unsafe_loading(ast.parse(path.read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_public_is_documented(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_importable_and_typed(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()
    assert (ROOT / package / "py.typed").is_file()


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import envs.atari", "ebu", {"envs"}),
        ("from agents import load_agent", "ebu", {"agents"}),
        ("def late():\n    from agents.ebu import EBU", "envs", {"agents"}),
        ("import ebu", "envs", {"ebu"}),
        ("import importlib\nimportlib.import_module('envs')", "agents", {"envs"}),
        ("from train import TrainConfig", "agents", {"train"}),
        ("from ebu.replay import EpisodicReplay\nfrom . import networks", "agents", set()),
    ],
)
def test_the_check_of_directions_sees_every_form_of_import(
    source: str, package: str, found: set[str]
) -> None:
    assert forbidden_imports(ast.parse(source), package) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", {"pickle"}),
        ("from torch import load", {"torch.load"}),
        ("import torch\ntorch.load('weights.pt')", {"torch.load"}),
        ("import numpy as np\nnp.load('a.npy', allow_pickle=True)", {"allow_pickle"}),
        ("import numpy as np\nnp.load('a.npy', allow_pickle=False)", set()),
    ],
)
def test_the_check_of_loading_sees_every_way_to_unpickle(source: str, found: set[str]) -> None:
    assert unsafe_loading(ast.parse(source)) == found


def test_the_check_of_docstrings_looks_at_public_names_only() -> None:
    source = "class Replay: ...\ndef draw(): ...\ndef _slot(): ...\n"
    assert undocumented(ast.parse(source)) == ["the module", "Replay", "draw"]
