"""Commands that messages name: they work when they are pasted into the same shell."""

import os
import shlex
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""Where the programs lie."""


def python_command(*words: object) -> str:
    """The interpreter that runs, with these words, quoted for the shell.

    Each `Path` is shown from the working directory if it lies in it, else as an absolute path.
    """
    return shlex.join([_shown(Path(sys.executable)), *map(_shown, words)])


def program_command(program: str, *words: object) -> str:
    """A program of this project with its arguments: `program_command("evaluate.py", run_dir)`."""
    return python_command(*_program(program), *words)


def program_argv(program: str, *words: object) -> tuple[str, ...]:
    """The same for a child process."""
    return (sys.executable, *map(str, (*_program(program), *words)))


def _program(program: str) -> list[str | Path]:
    """The starter in a checkout, else the installed module."""
    starter = PROJECT / program
    return [starter] if starter.is_file() else ["-m", f"ebu.commands.{starter.stem}"]


def tensorboard_command(directory: Path) -> str:
    """TensorBoard on a directory of logs."""
    return python_command("-m", "tensorboard.main", "--logdir", directory)


def install_command(extra: str) -> str:
    """Add the packages of an extra of pyproject.toml to the environment that runs."""
    constraints = ("-c", PROJECT / "constraints.txt")
    return python_command("-m", "pip", "install", *constraints, "-e", f"{_shown(PROJECT)}[{extra}]")


def _shown(word: object) -> str:
    if not isinstance(word, Path):
        return str(word)
    # Not resolved: the interpreter of a virtual environment is a link.
    path = Path(os.path.abspath(word))
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
