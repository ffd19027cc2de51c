"""What a wheel installs: three packages, their data, and commands that work elsewhere."""

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import ebu

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in ("ebu", "agents", "envs", "tests", "studies"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignore)
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for path in [*ROOT.glob("*.py"), *files]:
        shutil.copy(path, source)
    pip(["wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)])
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip(["install", "--no-deps", "--target", str(target), str(wheel)])
    return target


def pip(args: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *args]
    subprocess.run(command, check=True, timeout=300)


def test_a_wheel_holds_three_packages_and_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ebu", "agents", "envs", f"ebu-{ebu.__version__}.dist-info"}
    for package in ("ebu", "agents", "envs"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "study", "report", "distill", "export", "import", "release"]
)
def test_an_installed_command_works_elsewhere_and_calls_itself_by_its_name(
    name: str, installed: Path, tmp_path: Path
) -> None:
    def run(flag: str) -> subprocess.CompletedProcess[str]:
        program, env = (
            installed / "bin" / f"ebu-{name}",
            {**os.environ, "PYTHONPATH": str(installed)},
        )
        return subprocess.run(
            [program, flag], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )

    assert run("--version").stdout == f"ebu-{name} {ebu.__version__}\n"
    refused = run("--no-such-flag")
    assert refused.returncode == 2
    assert f"ebu-{name} --help" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_an_installed_command_names_the_packages_of_an_extra(
    installed: Path, tmp_path: Path
) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    # Its other extras are the project's own, which no package index has.
    del extras["dev"]
    print_commands = "\n".join(
        ["from ebu.run.hints import *", *(f"print(install_command({name!r}))" for name in extras)]
    )
    ended = subprocess.run(
        [sys.executable, "-c", print_commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = dict(zip(extras, map(shlex.split, ended.stdout.splitlines()), strict=True))
    for name, packages in extras.items():
        assert printed[name][1:] == ["-m", "pip", "install", *packages]


CHECK = """
import importlib, sys
HEAVY = {"torch", "scipy", "matplotlib", "tensorboard", "ray", "submitit", "huggingface_hub"}
command = importlib.import_module(sys.argv[1]).command
sys.argv = sys.argv[1:]
try:
    command()
except SystemExit as exit_:
    print(exit_.code, sorted(HEAVY & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("train", ["--beta 2", "--game pogn", "--no-such-flag"]),
        ("evaluate", ["run --episodes 0"]),
        ("study", ["--games pong --seeds 0"]),
        ("report", [""]),
        ("distill", ["run --states 0"]),
        ("export", ["run --out x --games 0"]),
        ("importing", ["weights.zip"]),
    ],
)
def test_help_and_errors_in_settings_load_nothing_heavy(name: str, refused: list[str]) -> None:
    for code, args in ((0, "--help"), *((2, args) for args in refused)):
        ended = subprocess.run(
            [sys.executable, "-c", CHECK, f"ebu.commands.{name}", *args.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.stdout.splitlines()[-1] == f"{code} []", (args, ended.stderr)
