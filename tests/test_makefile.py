"""`make` hands what it is given to the programs, as it was given."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def arguments_of(*given: str) -> list[str]:
    """The arguments of the program that a target ends with, as a shell passes them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    make = ["make", "--dry-run", *given, "BIN=printf '%s\\n'", "PYTHON=true"]
    dry = subprocess.run(make, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    # Before it come the lines that would install something.
    lines = dry.stdout.replace("\\\n", " ").splitlines()
    shell = ["sh", "-c", lines[-1]]
    ran = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


@pytest.mark.parametrize("value", ["pong", "Ms. Pac-Man", "Up'n Down", "Q*bert", "*", "a; b"])
def test_a_value_stays_one_word(value: str) -> None:
    named = {"GAME": "--game", "AGENT": "--agent", "FRAMES": "--frames", "SEED": "--seed"}
    words = arguments_of("train", *(f"{name}={value}" for name in named))
    assert words == ["train.py", *(word for flag in named.values() for word in (flag, value))]
    words = arguments_of("reproduce", f"RESULTS={value}")
    assert words == ["-m", "studies.reproduce", "--results", value]


def test_further_flags_are_words_as_typed() -> None:
    words = arguments_of("train", "GAME=pong", "ARGS=--num-envs 8 --run-dir 'a run'")
    assert words[-4:] == ["--num-envs", "8", "--run-dir", "a run"]
    assert "--frames" not in words
