"""Flags from dataclasses; errors as one line and an exit code."""

import errno
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ebu.errors import EbuError, UsageError
from ebu.run.cli import count, parse, run_command


@dataclass(frozen=True)
class Method:
    """A part of the configuration."""

    beta: float = 0.5
    """Diffusion factor."""


@dataclass(frozen=True)
class Config:
    """Everything there is to set."""

    game: str = "pong"
    """Which game to play."""
    num_envs: int = 8
    """How many at once."""
    clip: bool = True
    """Whether rewards are clipped."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic."""
    run_dir: Path | None = None
    """Where it goes."""
    most: int | None = None
    """How many at most."""
    sizes: tuple[int, ...] = ()
    """How large each is."""
    method: Method = field(default_factory=Method)


def parsed(*args: str, default: Config | None = None) -> Config:
    return parse(Config, args, default=default, prog="tool.py", description="A tool for tests.")


def complaint(*args: str) -> str:
    with pytest.raises(UsageError) as error:
        parsed(*args)
    message = str(error.value)
    assert "\n" not in message
    assert not set(message) & set("╭╮╰╯│─")
    assert "tool.py --help" in message
    return message


def test_flags_are_flat_and_take_hyphens_and_equals_signs() -> None:
    assert parsed() == Config()
    other = Config(game="freeway", method=Method(beta=0.25))
    assert parsed(default=other) == other
    flags = ["--num-envs", "4", "--beta=0.25", "--no-clip", "--run-dir", "runs/a b"]
    expected = Config(num_envs=4, clip=False, run_dir=Path("runs/a b"), method=Method(0.25))
    assert parsed(*flags) == expected
    assert parsed(*flags, default=other).game == "freeway"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("--num-env 4", "--num-env --num-envs"),
        ("--nonsense", "--nonsense"),
        ("stray", "stray"),
        ("--num-envs four", "--num-envs four"),
        ("--num-envs 2.5", "--num-envs 2.5"),
        ("--beta much", "--beta much"),
        ("--num-envs", "--num-envs"),
        ("--precision float16", "--precision float16 bfloat16"),
        ("--game pong breakout", "breakout"),
        ("--clip=False", "--clip=False --no-clip"),
        ("--no-clip=1", "--no-clip=1 --clip"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_it(args: str, named: str) -> None:
    message = complaint(*args.split())
    assert all(name in message for name in named.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_error_is_whole_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    for args, named in ((["--precision", "x"], "bfloat16"), (["--beto", "1"], "--beto")):
        message = complaint(*args)
        assert named in message
        assert "---" not in message


def test_an_empty_argument_is_refused() -> None:
    assert "an argument is empty" in complaint("")
    assert "--run-dir is empty" in complaint("--run-dir", "")
    assert "--run-dir is empty" in complaint("--run-dir=")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("400000", 400_000), ("400k", 400_000), ("400K", 400_000), ("10M", 10_000_000)),
        *(("1.5M", 1_500_000), ("1e6", 1_000_000), ("2.5E+3", 2_500), ("1_000_000", 1_000_000)),
        *(("1e3k", 1_000_000), ("10e-1", 1), ("-4", -4), ("1e15", 10**15)),
    ],
)
def test_integers_are_read_as_people_write_them(text: str, value: int) -> None:
    assert count(text) == value
    assert parsed("--num-envs", text).num_envs == value
    assert parsed(f"--most={text}").most == value
    assert parsed("--sizes", text, "3").sizes == (value, 3)


HUGE = ("1e30", "1" + "0" * 400, "9" * 20, "1e" + "9" * 30, "-1e30", "1e999999999", "1e14k")
NO_INTEGER = ("１", "1.5", "1e-3", "1e-999999999", "inf", "nan", "1e", "k", "1__0.", "0x10", "")


@pytest.mark.parametrize("text", [*HUGE, *NO_INTEGER])
def test_what_is_no_integer_that_a_flag_takes_is_one_line(text: str) -> None:
    for flag in ("--num-envs", "--most", "--sizes"):
        message = complaint(f"{flag}={text}")
        assert flag in message
        assert len(message) < 200


@pytest.mark.parametrize("text", [*HUGE[:2], *NO_INTEGER[:3]])
def test_which_of_several_numbers_does_not_fit_and_why_is_said(text: str) -> None:
    with pytest.raises(ValueError) as why:  # noqa: PT011
        count(text)
    assert str(why.value) in complaint("--sizes", "1", text, "3")


@pytest.mark.parametrize(
    "text", ["1e30", "1" + "0" * 400, "9" * 20, "inf", "-inf", "much", "１", ""]
)
def test_what_is_no_number_that_a_flag_takes_is_one_line(text: str) -> None:
    assert "--beta" in complaint(f"--beta={text}")


def test_an_error_on_a_terminal_is_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    for args in (["--precision", "x"], ["--beto", "1"], ["--seed", "many"], ["--network"]):
        plain = complaint(*args)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Terminal())
            patch.setenv("TERM", "xterm")
            assert complaint(*args) == plain


def test_an_interrupt_ends_the_line_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(main_raising(KeyboardInterrupt()))
    assert exit_.value.code == 130
    assert capsys.readouterr().err.startswith("\ninterrupted: ")


def test_a_narrow_terminal_splits_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert "--no-such-setting-as-this-one" in complaint("--no-such-setting-as-this-one", "3")


def main_raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 143, 143, ""),
        (main_raising(UsageError("--beta must lie between 0 and 1")), 2, "--beta must lie"),
        (main_raising(EbuError("the disk is full: free space")), 1, "the disk is full"),
        (main_raising(UsageError("a\nb/config.json: missing")), 2, r"a\nb/config.json: missing"),
        (main_raising(BrokenPipeError()), 1, ""),
        (main_raising(OSError(errno.EIO, "I/O error", "a\nb")), 1, r"a\nb: I/O error; mend it"),
        (main_raising(OSError("two\nlines")), 1, r"two\nlines; mend it"),
    ],
)
def test_exit_codes(
    main: Callable[[], int | None], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == (1 if line else 0)
    assert err.startswith("error: " + line if line else "")
