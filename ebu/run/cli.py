"""Turn dataclasses into flags, and errors into one line and an exit code."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, NoReturn, TypeVar

import tyro

from ebu import __version__
from ebu.errors import EbuError, UsageError
from ebu.run.hints import program_name
from ebu.run.settings import check_settings, read_float, switches
from ebu.run.streams import output_error, prepare_streams

ConfigT = TypeVar("ConfigT")

LARGEST_NUMBER = 10**15
"""No flag takes a number above this; a float still holds every integer up to here."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COUNT = re.compile(r"([+-]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)([kKmM]?)")
_EXACT = Context(prec=50, traps=[Inexact, InvalidOperation])


def parse(
    config_type: type[ConfigT],
    args: Sequence[str],
    *,
    default: ConfigT | None = None,
    prog: str,
    description: str,
) -> ConfigT:
    """Fill a dataclass from command-line flags; nested dataclasses give flat flags.

    Integers may be written as `count` reads them, and no number may be above `LARGEST_NUMBER` or
    outside of its `Bounds`.

    Raises `UsageError` with one line when a flag is unknown or its value does not fit.
    `--help` and `--version` print and exit with 0.
    """
    prog = program_name(prog)
    if "--version" in args:
        print(f"{prog} {__version__}")
        raise SystemExit(0)
    refuse_empty(args, prog)
    for name in switches(config_type if default is None else default):
        on, off = (f"--{prefix}{name.replace('_', '-')}" for prefix in ("", "no-"))
        for each in args:
            if each.replace("_", "-").startswith((f"{on}=", f"{off}=")):
                raise UsageError(
                    f"{_shorten(each)}: write {on} or {off}, without a value (see {prog} --help)"
                )
    complaint, refused = io.StringIO(), list[str]()
    try:
        with contextlib.redirect_stderr(complaint):
            config = tyro.cli(
                config_type,
                prog=prog,
                description=description,
                args=list(args),
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_numbers(refused),
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        said = complaint.getvalue()
        raise UsageError(_one_line(said, prog, refused[-1] if refused else "")) from None
    check_settings(config)
    return config


def refuse_empty(args: Sequence[str], prog: str) -> None:
    """Raise `UsageError` for an empty word and for a flag without the value after its `=`.

    An empty path would be the working directory.
    """
    for before, each in zip(["", *args], args, strict=False):
        if not each or re.fullmatch(r"--[A-Za-z][\w-]*=", each):
            flag = before if each == "" else each[:-1]
            what = flag if flag.startswith("--") else "an argument"
            raise UsageError(
                f"{what} is empty: give it a value, or leave it out (see {prog} --help)"
            )


def count(text: str) -> int:
    """An integer as people write it: 400000, 400k, 1e6, 10M, 1_000_000.

    Raises `ValueError` with one line for anything else and for what no flag takes.
    """
    written = _COUNT.fullmatch(text)
    if written is None:
        raise ValueError(f"{_shorten(text)} is no integer, such as 400000, 400k or 1e6")
    try:
        value = Decimal(written[1])
        if value.adjusted() < len(str(LARGEST_NUMBER)):
            value = _EXACT.multiply(value, {"": 1, "k": 10**3, "m": 10**6}[written[2].lower()])
        if abs(value) > LARGEST_NUMBER:
            raise ValueError(_too_large(text))
        if value != int(value):
            raise ValueError(f"{_shorten(text)} is no integer")
    except ArithmeticError:  # exponents of many digits
        raise ValueError(f"{_shorten(text)} is no integer that a flag takes") from None
    return int(value)


def _number(text: str) -> float:
    try:
        value = read_float(text)
    except ValueError:
        raise ValueError(f"{_shorten(text)} is no number") from None
    if abs(value) > LARGEST_NUMBER:
        raise ValueError(_too_large(text))
    return value


def _too_large(text: str) -> str:
    return f"{_shorten(text)} is too large: no number may be above {LARGEST_NUMBER:.0e}"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:36]}..."


def _numbers(refused: list[str]) -> tyro.constructors.ConstructorRegistry:
    """Rules that read integers and numbers; why they refuse one is added to a list."""
    readers: dict[type, Callable[[str], int | float]] = {int: count, float: _number}
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(of: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if (kind := of.type) not in readers:
            return None

        def read(args: list[str]) -> int | float:
            try:
                return readers[kind](args[0])
            except ValueError as error:
                refused.append(str(error))
                raise

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, kind),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _one_line(box: str, prog: str, refused: str) -> str:
    """The words of an error drawn in a box, without the box, its title and the flags' help.

    `refused` says what was wrong with a number; the box does not, where a flag takes several.
    """
    words: list[str] = []
    box = _COLOUR.sub("", box)
    # Where the output is not UTF-8 there is no box, and the title is the first line.
    lines = box.splitlines() if "╭" in box else box.strip().splitlines()[1:]
    for line in lines:
        text = re.sub(r"[─│├┤]+", " ", line).strip()
        if line[:1] in "╭╰" or not re.search(r"\w", text):
            continue
        if text.startswith(("Argument helptext", "For full helptext")):
            break
        if not (words and words[-1].startswith("--")) or text.startswith("--"):
            words.append(text)
    text = f"{' '.join(words)} (see {prog} --help)"
    # Of a flag that may be left empty: why the other kind of value does not fit is no news.
    kind = r"(?:<class '(?:int|float)'>|typing\.Annotated\[.*?\)\])"
    text = re.sub(rf"no type matching .*- {kind}: ", "", text)
    if refused:
        several = r"Could not find valid parse for arguments: \[.*\](?= \(see)"
        text = re.sub(several, lambda _: refused, text)
    return re.sub(r"[0-9][0-9 ]{79,}", lambda digits: f"{digits[0][:36]}...", text)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: 0 or what it returns, 2 for usage, 1 for failure, 130 on Ctrl-C.

    Errors a user can act on are printed as one line on standard error.
    """
    prepare_streams()
    try:
        code = main()
    except EbuError as error:
        _complain(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        # A disk that fails where nothing better can be said than what the system says.
        where = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{where}{error.strerror or error}; mend it and run the same command again")
        sys.exit(1)
    if cut := output_error():
        print(f"warning: standard output is cut: {cut.strerror}", file=sys.stderr)
    sys.exit(code or 0)


def _complain(text: str) -> None:
    # A path may hold line ends.
    print("error:", r"\n".join(text.splitlines()), file=sys.stderr)
