"""Which modules of environments are imported: those that were typed, or trusted by --trust-env."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebu.errors import EbuError, UsageError
from ebu.run.directory import CONFIG, read_config
from ebu.run.hints import program_command
from envs import is_atari

FLAG = "--trust-env"


def modules_in(settings: Mapping[str, Any]) -> list[str]:
    """What of a run's settings imports a module: `module:Env-v0`, and `module:Wrapper`."""
    game, wrappers = str(settings.get("game", "")), settings.get("env_wrappers") or ()
    return [*([game] if ":" in game and not is_atari(game) else []), *map(str, wrappers)]


def trust_words(settings: Mapping[str, Any]) -> list[str]:
    """The flag, where a command that reads the run needs it."""
    return [FLAG] if modules_in(settings) else []


def evaluate_command(run_dir: Path, *words: object) -> str:
    """The command that scores a run, with the flag where it needs it."""
    settings: Mapping[str, Any] = {}
    # What is damaged in it, the command says.
    with contextlib.suppress(EbuError):
        settings = read_config(run_dir)["settings"]
    return program_command("evaluate.py", run_dir, *words, *trust_words(settings))


def check_trust(run_dir: Path, settings: Mapping[str, Any], trusted: bool) -> None:
    """Raise `UsageError` for a run whose settings, read from its file, import code unasked."""
    names = modules_in(settings)
    if names and not trusted:
        raise UsageError(
            f"{run_dir / CONFIG} names {', '.join(names)}, whose code would be run: add {FLAG} if "
            "you trust the module of that name that Python finds here"
        )
    add_working_directory(names)


def add_working_directory(names: list[str]) -> None:
    """Let Python find modules of the working directory too, after all others."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
