"""Commands that messages name; they work when pasted into the same shell."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The checkout, or the directory that the packages are installed in."""


def in_checkout() -> bool:
    """Whether the programs lie next to the packages; elsewhere they are installed commands."""
    return (PROJECT / "train.py").is_file()


def program_name(program: str) -> str:
    """What users call a program: `train.py` in a checkout, `ebu-train` where it is installed."""
    return program if in_checkout() else re.sub(r"^(\w+)\.py\b", r"ebu-\1", program)


def program_command(program: str, *words: object, processes: int = 1) -> str:
    """A program with its arguments, quoted for the shell: `program_command("train.py", "--help")`.

    Each `Path` is shown from the working directory if it lies in it, else as an absolute path; with
    a `..` in it, as it is.
    Several processes are started by torchrun.
    """
    if processes > 1:
        module = ("--module", f"ebu.commands.{Path(program).stem}")
        start: tuple[object, ...] = (PROJECT / program,) if in_checkout() else module
        torchrun = Path(sys.executable).with_name("torchrun")
        return _command(torchrun, "--nproc-per-node", processes, *start, *words)
    if in_checkout():
        return _command(Path(sys.executable), PROJECT / program, *words)
    name = program_name(program)
    installed = Path(sys.executable).with_name(name)
    on_path = shutil.which(name)
    return _command(name if on_path and Path(on_path).samefile(installed) else installed, *words)


def program_argv(program: str, *words: object) -> tuple[str, ...]:
    """A program with its arguments, for a child process."""
    starter = PROJECT / program
    # -P: modules of the working directory come after all others.
    start = (str(starter),) if in_checkout() else ("-P", "-m", f"ebu.commands.{starter.stem}")
    return (sys.executable, *start, *map(str, words))


def tensorboard_command(directory: Path) -> str:
    """TensorBoard on a directory of logs."""
    return _command(Path(sys.executable), "-m", "tensorboard.main", "--logdir", directory)


def install_command(extra: str) -> str:
    """Add the packages of an extra of pyproject.toml to the environment that runs."""
    if in_checkout():
        what = ["-c", PROJECT / "constraints.txt", "-e", f"{_shown(PROJECT)}[{extra}]"]
    else:
        # No package index has this project: what the extra adds is named instead.
        what = [*_packages_of(extra)]
    return _command(Path(sys.executable), "-m", "pip", "install", *what)


def _packages_of(extra: str) -> Iterator[str]:
    """The packages of an extra of the installed distribution, as pip takes them."""
    for requirement in requires("ebu") or ():
        package, _, marker = requirement.partition(";")
        if re.fullmatch(rf"extra == ['\"]{extra}['\"]", marker.strip()):
            yield package.strip()


def _command(*words: object) -> str:
    return shlex.join(map(_shown, words))


def _shown(word: object) -> str:
    if not isinstance(word, Path):
        return str(word)
    # Not resolved: the interpreter of a virtual environment is a link.
    shown = word
    # After a link `..` is the parent of where it leads, which only the system knows.
    if ".." not in word.parts:
        # The working directory may have been removed.
        with contextlib.suppress(FileNotFoundError):
            path, here = Path(os.path.abspath(word)), Path.cwd()
            shown = path.relative_to(here) if path.is_relative_to(here) else path
    # It would be read as a flag.
    return f"./{shown}" if str(shown).startswith("-") else str(shown)
