"""Run all commands and Python examples of README.md and docs, shortened, as a reader would.

    .venv/bin/python docs/check.py                      every page, in the order README links them
    .venv/bin/python docs/check.py README.md docs/study.md

Pages run in a copy of the tracked files, one shell a page, exactly as printed. The copy's `.venv`
has the packages of the one that runs this, and programs that shorten what they are given by the
table `SHORT`, and nothing else. A command fails if it ends with another code than 0 or prints a
traceback; a link fails if its file is missing. Exit code 1 if anything failed.

| on a page | what is done |
| --- | --- |
| indented block; fenced `sh`, `console`, or without a language | run by bash, command by command |
| code in a sentence that begins with a program, such as `make train` | run, unless run before |
| fenced `python` | run by the copy's Python; with a path after `python`, written to that file |
| fenced `diff` | applied to the copy |
| fenced `text`, `json` | nothing |
"""

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SETS = ("paper49", "atari5", "all57")
UNITS = ("frames", "episodes", "states", "updates", "seeds", "games")


class Short(NamedTuple):
    """A flag of a program, what it counts, and the value that the check gives it.

    A larger number becomes `value` and a ten-thousandth of itself, so that a run that grows still
    grows. Where the flag is missing it is added, for programs whose default is larger. Of names the
    first is taken, and `value` for a set of games.
    """

    program: str
    flag: str
    unit: str
    value: int | str
    add: bool = True


SHORT = (
    Short("train.py", "--frames", "frames", 1_000),
    Short("train.py", "--eval-episodes", "episodes", 1),
    Short("evaluate.py", "--episodes", "episodes", 2),
    Short("study.py", "--games", "games", "breakout", add=False),
    Short("study.py", "--seeds", "seeds", 1),
    Short("study.py", "--frames", "frames", 2_000),
    Short("study.py", "--episodes", "episodes", 2),
    Short("distill.py", "--states", "states", 400),
    Short("distill.py", "--updates", "updates", 20),
    Short("distill.py", "--games", "games", 2),
    Short("distill.py", "--seeds", "seeds", 1),
    Short("distill.py", "--baseline-seeds", "seeds", 1),
    Short("distill.py", "--from-scratch", "frames", 2_000, add=False),
    Short("studies.chain", "--runs", "games", 200),
    Short("studies.maze", "--steps", "frames", 500),
    Short("studies.maze", "--mazes", "games", 2),
    Short("benchmarks.train_speed", "--window", "frames", 400),
    Short("benchmarks.train_speed", "--pairs", "games", 1),
    Short("benchmarks.replay_speed", "--replay-capacity", "states", 20_000),
    Short("benchmarks.replay_speed", "--repetitions", "updates", 20),
    Short("benchmarks.target_speed", "--steps", "frames", 128),
    Short("benchmarks.target_speed", "--repetitions", "updates", 1),
    Short("benchmarks.env_speed", "--steps", "frames", 50),
    Short("benchmarks.update_speed", "--repetitions", "updates", 2),
)
# Programs that are short as they are.
QUICK = (
    "report.py",
    "docs/results/plot.py",
    "examples/play_agent.py",
    "examples/play_onnx.py",
    "benchmarks.gpu",
)

SHELL, EXAMPLE, PATCH, SHOWN = ("", "sh", "console"), "python", "diff", ("text", "json")
PROGRAMS = ("make", "python", "python3", "pip", "tensorboard", ".venv/bin/")
COMMAND_SECONDS = ALL_SECONDS = 900
SERVER_SECONDS = 60
# Names a file in which a program that cannot run here says why; the command then counts as skipped.
SKIPPED = "DOCS_CHECK_SKIPPED"
RUN_AS = "run as: "


class Block(NamedTuple):
    """A block of code or one piece of code in a sentence, and the line it begins in."""

    line: int
    language: str
    text: str
    inline: bool = False


class Command(NamedTuple):
    """Something that bash runs; `shown` is what the reader sees."""

    line: int
    text: str
    shown: str


class PageError(Exception):
    """What is wrong with a page itself, in one line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


# Pages: what is printed on them.


def pages_of(root: Path) -> list[Path]:
    """README.md and the pages of docs, those it links first, in that order."""
    links = links_of((root / "README.md").read_text(encoding="utf-8"))
    linked = [Path(os.path.normpath(target.partition("#")[0])) for _, target in links]
    others = sorted(path.relative_to(root) for path in (root / "docs").rglob("*.md"))
    return list(dict.fromkeys([Path("README.md"), *(p for p in linked if p in others), *others]))


def links_of(text: str) -> Iterator[tuple[int, str]]:
    """Lines and targets of the links and pictures that lead into the project."""
    for found in re.finditer(r"\]\(([^)\s]+)\)", text):
        if "://" not in found[1]:
            yield text.count("\n", 0, found.start()) + 1, found[1]


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether there is such a file, and such a heading in it if the link names one."""
    name, _, heading = target.partition("#")
    file = page.parent / name if name else page
    if not (heading and file.is_file()):
        return file.exists()
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return heading in anchors


def blocks_of(text: str) -> Iterator[Block]:
    """All code of a page, in order. Raises `PageError` for a fence that is never closed."""
    lines = text.splitlines()
    prose: list[str] = []
    at = 0
    while at < len(lines):
        begin, line = at, lines[at]
        fence = re.fullmatch(r"( *)(`{3,}|~{3,})([^`]*)", line)
        if fence:
            yield from inline_of(prose, begin)
            prose, indent = [], len(fence[1])
            at += 1
            while at < len(lines) and lines[at].strip() != fence[2]:
                at += 1
            if at == len(lines):
                raise PageError(begin + 1, "a fenced block is never closed")
            inside = "\n".join(line[min(indent, len(line)) :] for line in lines[begin + 1 : at])
            yield Block(begin + 2, fence[3].strip(), inside)
        elif line.startswith("    ") and not (begin and lines[begin - 1].strip()):
            yield from inline_of(prose, begin)
            prose = []
            while at + 1 < len(lines) and (lines[at + 1][:4].strip() == ""):
                at += 1
            yield Block(begin + 1, "", "\n".join(line[4:] for line in lines[begin : at + 1]))
        else:
            prose.append(line)
            if not line.strip():
                yield from inline_of(prose, at + 1)
                prose = []
        at += 1
    yield from inline_of(prose, at)


def inline_of(prose: Sequence[str], end: int) -> Iterator[Block]:
    """Commands in a paragraph that ends before line `end` (from 0)."""
    paragraph = "\n".join(prose)
    for found in re.finditer(r"`([^`]+)`", paragraph):
        text = " ".join(found[1].split())
        program, _, rest = text.partition(" ")
        if program.startswith(".venv/bin/") or (program in PROGRAMS and rest):
            line = end - len(prose) + paragraph.count("\n", 0, found.start()) + 1
            yield Block(line, "", text, inline=True)


def commands_of(text: str, examples: Path) -> list[Command]:
    """What a page's reader types, in order; Python examples are written below `examples`.

    Raises `PageError` for a language that is not known and for a command that never ends.
    """
    commands: list[Command] = []
    for block in blocks_of(text):
        language, _, path = block.language.partition(" ")
        if language in SHELL:
            for command in split(block):
                if not (block.inline and command.text in [before.text for before in commands]):
                    commands.append(command)
        elif language in (EXAMPLE, PATCH):
            source = examples / f"{len(commands)}.{language}"
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(block.text + "\n", encoding="utf-8")
            quoted = shlex.quote(str(source))
            run, shown = f".venv/bin/python - < {quoted}", "the Python example"
            if language == PATCH:
                run, shown = f"git apply {quoted}", "the change to files"
            elif path:
                run, shown = f"cp {quoted} {shlex.quote(path)}", f"the file {path}"
            commands.append(Command(block.line, run, shown))
        elif language not in SHOWN:
            known = ", ".join((*SHELL[1:], EXAMPLE, PATCH, *SHOWN))
            raise PageError(block.line, f"code in '{language}': know only {known}")
    return commands


def split(block: Block) -> Iterator[Command]:
    """The commands of a block: as many lines to each as bash needs."""
    console = block.language == "console"
    begin, lines = block.line, list[str]()
    for number, line in enumerate(block.text.splitlines(), block.line):
        if console:
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        if not lines and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begin = begin if lines else number
        lines.append(line)
        text = "\n".join(lines)
        if not line.endswith("\\") and is_whole(text):
            yield Command(begin, text, " ".join(text.split()))
            lines = []
    if lines:
        raise PageError(begin, f"bash waits for the rest of: {lines[0].strip()}")


def is_whole(text: str) -> bool:
    """Whether bash would run this and not wait for more."""
    return (
        subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0
    )


# Programs: what stands in the copy's .venv/bin.


def shortened(args: Sequence[str], table: Sequence[Short] = SHORT) -> list[str]:
    """A program and its arguments by the table. Raises `LookupError` for one not in it."""
    program, *rest = args
    rows = [row for row in table if row.program == os.path.normpath(program)]
    if not rows and os.path.normpath(program) not in QUICK:
        raise LookupError(f"{program}: docs/check.py does not say how it is shortened")
    added: list[str] = []
    for row in rows:
        found, rest = replaced(row, rest)
        if not found and row.add and "--resume" not in rest:
            added += [row.flag, str(row.value)]
    return [program, *added, *rest]


def replaced(row: Short, args: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a flag is among arguments, and these with its value shortened."""
    found, result, at = False, [], 0
    while at < len(args):
        name, joined, value = args[at].partition("=")
        at += 1
        if name != row.flag:
            result.append(args[at - 1])
            continue
        found = True
        values = [value] if joined else []
        while not joined and at < len(args) and not args[at].startswith("-"):
            values.append(args[at])
            at += 1
        if isinstance(row.value, str):
            result += [row.flag, values[0] if values and values[0] not in SETS else row.value]
        else:
            result += [row.flag, *(short_of(row.value, given) for given in values)]
    return found, result


def short_of(most: int, given: str) -> str:
    """A number as given, or shortened; what is no number is left for the program to refuse."""
    number = re.fullmatch(r"([\d_]+(?:\.\d+)?(?:e\d+)?)([kM]?)", given)
    if not number:
        return given
    value = float(number[1].replace("_", "")) * {"": 1, "k": 1_000, "M": 1_000_000}[number[2]]
    short = most + int(value // 10_000)
    return str(short) if value > short else given


def run_python(args: list[str]) -> NoReturn:
    """Stand in for `.venv/bin/python`: shorten, or say why that cannot run here, and run."""
    if args[:1] == ["-m"] and args[1] in ("pytest", "ruff", "mypy"):
        skip("the checks of the code are run by themselves")
    module = args[:1] == ["-m"] and args[1].startswith(("studies.", "benchmarks."))
    if module or (args and args[0].endswith(".py")):
        if os.path.normpath(args[0]) == "docs/check.py":
            skip("it is running")
        try:
            args = ["-m"] * module + shortened(args[module:])
        except LookupError as error:
            sys.exit(f"error: {error}")
        if "benchmarks.gpu" in args and not shutil.which("nvidia-smi"):
            skip("there is no GPU here")
        if "kegnet" in args:
            skip("five minutes, and no flag for the updates of the generators")
        if "sb3" in args and not has_benchmarks():
            skip("Stable-Baselines3 is not installed here")
        if "--render" in args and "DISPLAY" not in os.environ:
            if not (shutil.which("xvfb-run") and util.find_spec("_tkinter")):
                skip("there is no display here, or no xvfb-run and Tk to do without")
            os.execvp("xvfb-run", ["xvfb-run", "-a", sys.executable, *args])
        print(f"{RUN_AS}{shlex.join(args)}", flush=True)
    os.execv(sys.executable, [sys.executable, *args])


def run_pip(args: list[str]) -> NoReturn:
    """Stand in for `.venv/bin/pip`."""
    if any("[bench]" in arg for arg in args) and not has_benchmarks():
        skip("a download that only the comparison with Stable-Baselines3 needs")
    # The build needs setuptools, which is here: nothing is downloaded.
    os.environ["PIP_NO_BUILD_ISOLATION"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "pip", *args])


def run_tensorboard(args: list[str]) -> NoReturn:
    """Stand in for `.venv/bin/tensorboard`: start the server, open its page, stop it."""
    logs = args[args.index("--logdir") + 1]
    if not Path(logs).is_dir():
        sys.exit(f"error: there is no directory {logs}")
    command = [sys.executable, "-m", "tensorboard.main", *args]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    # Also where it says nothing more, so that the line below is not waited for without end.
    signal.signal(signal.SIGALRM, lambda *_: server.kill())
    signal.alarm(SERVER_SECONDS)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            print(line, end="")
            if address := re.search(r"http://\S+", line):
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(address[0], timeout=SERVER_SECONDS) as answer:
                    print(f"{address[0]} answers {answer.status}")
                sys.exit(0)
        sys.exit("error: TensorBoard ended, or did not answer")
    except urllib.error.URLError as error:
        sys.exit(f"error: TensorBoard does not answer: {error.reason}")
    finally:
        server.kill()
        server.wait()


def has_benchmarks() -> bool:
    """Whether the extra `bench` is installed."""
    return util.find_spec("stable_baselines3") is not None


def skip(reason: str) -> NoReturn:
    """End as if all were well, and leave the reason."""
    Path(os.environ[SKIPPED]).write_text(reason, encoding="utf-8")
    sys.exit(0)


STAND_INS = {"python": run_python, "pip": run_pip, "tensorboard": run_tensorboard}


# The copy, and what runs in it.


def copy_tree(root: Path, to: Path) -> None:
    """Copy the tracked files, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, to / name, follow_symlinks=False)


def make_environment(copy: Path, bare: Path) -> None:
    """Make `.venv` in the copy: packages of ours, the copy's code, and the stand-ins for programs.

    Programs below `bare` fail: a reader may have none of that name.
    """
    venv.EnvBuilder(symlinks=True).create(copy / ".venv")
    programs, real = copy / ".venv/bin", Path(sys.executable).resolve()
    for program in programs.iterdir():
        program.unlink()
    interpreter = programs / real.name
    interpreter.symlink_to(real)
    paths = {"base": str(copy / ".venv"), "platbase": str(copy / ".venv")}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    # As an editable installation would have it.
    (packages / "check.pth").write_text(f"{copy}\n{sysconfig.get_path('purelib')}\n")
    for ready in Path(sys.prefix).glob(".ready-*"):
        (copy / ".venv" / ready.name).touch()
    bare.mkdir()
    for name in STAND_INS:
        run = f'exec {shlex.quote(str(interpreter))} {shlex.quote(__file__)} --as {name} "$@"'
        say = f"echo '{name} may not be there: write .venv/bin/{name}' >&2; exit 127"
        for program, line in ((programs / name, run), (bare / name, say)):
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)


class Shell:
    """A bash that keeps variables and the working directory from command to command."""

    def __init__(self, cwd: Path, log: Path, env: dict[str, str]) -> None:
        self._status, self._writing = os.pipe()
        with log.open("a") as printed:
            self._process = subprocess.Popen(
                ["bash"],
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                text=True,
                pass_fds=[self._writing],
                start_new_session=True,
            )
        os.close(self._writing)
        self._printed = log.open(encoding="utf-8", errors="replace")
        # A command that fails inside a loop counts, too.
        self._send("set -E; trap 'failed=$?' ERR")

    def run(self, command: str, seconds: float) -> str | None:
        """None, or how a command failed."""
        fd = self._writing
        self._send(f"failed=0; {{ {command}\n}} </dev/null {fd}>&-; echo $failed >&{fd}")
        answered, _, _ = select.select([self._status], [], [], seconds)
        if not answered:
            self._kill()
            return f"not done after {seconds:.0f} s"
        status = os.read(self._status, 16).decode().strip()
        if status != "0":
            return f"exit code {status}" if status else "the shell ended"
        return None

    def output(self) -> str:
        """What was printed since the last call."""
        return self._printed.read()

    def close(self) -> None:
        """End it and all it started."""
        self._kill()
        os.close(self._status)
        self._printed.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()


class Result(NamedTuple):
    """A command of a page, how long it took, why it failed or was skipped, and how it was run."""

    where: str
    shown: str
    seconds: float = 0.0
    failed: str | None = None
    skipped: str | None = None
    shortened: tuple[str, ...] = ()


def run_page(page: Path, copy: Path, scratch: Path) -> Iterator[Result]:
    """Check the links of a page and run its commands; stop where the shell is lost."""
    text = (copy / page).read_text(encoding="utf-8")
    for line, target in links_of(text):
        if not leads_somewhere(copy / page, target):
            yield Result(f"{page}:{line}", f"the link to {target}", failed="leads nowhere")
    name = str(page).replace("/", "-")
    reason = scratch / f"{name}.skipped"
    path = f"{scratch / 'bare'}:{os.environ['PATH']}"
    env = {**os.environ, SKIPPED: str(reason), "PATH": path}
    env.pop("VIRTUAL_ENV", None)
    try:
        commands = commands_of(text, scratch / name)
    except PageError as error:
        yield Result(f"{page}:{error.line}", "the page", failed=str(error))
        return
    with contextlib.closing(Shell(copy, scratch / f"{name}.log", env)) as shell:
        for command in commands:
            begun = time.monotonic()
            failed = shell.run(command.text, COMMAND_SECONDS)
            seconds, printed = time.monotonic() - begun, shell.output()
            if failed is None and "Traceback (most recent call last)" in printed:
                failed = "a traceback"
            skipped = None
            if failed is None and reason.exists():
                skipped = reason.read_text(encoding="utf-8")
            reason.unlink(missing_ok=True)
            if failed:
                failed += "".join(f"\n    {line}" for line in printed.splitlines()[-15:])
            found = re.findall(rf"^{RUN_AS}(.*)$", printed, flags=re.M)
            where = f"{page}:{command.line}"
            yield Result(where, command.shown, seconds, failed, skipped, tuple(found))


def described(result: Result) -> str:
    """A result for people: a line, and one for each program that was shortened."""
    state = "FAILED" if result.failed else "skipped" if result.skipped else "ok"
    why = result.failed or result.skipped
    line = f"{result.seconds:6.1f} s  {state:7}  {result.where}  {result.shown}"
    return "\n".join(
        [line + (f": {why}" if why else ""), *(f"    {run}" for run in result.shortened)]
    )


def main(pages: Sequence[str]) -> int:
    """Run pages, or all; 1 if anything failed."""
    began = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(prefix="docs-check-") as folder:
        copy, scratch = Path(folder, "copy"), Path(folder, "scratch")
        scratch.mkdir()
        copy_tree(ROOT, copy)
        make_environment(copy, scratch / "bare")
        for page in map(Path, pages) if pages else pages_of(copy):
            for result in run_page(page, copy, scratch):
                results.append(result)
                print(described(result), flush=True)
    failed = sum(result.failed is not None for result in results)
    skipped = sum(result.skipped is not None for result in results)
    seconds = time.monotonic() - began
    cpu = sum(os.times()[:4])
    print(
        f"{len(results)} commands: {failed} failed, {skipped} skipped; {seconds:.0f} s, "
        f"{cpu:.0f} s of processor time"
    )
    if seconds > ALL_SECONDS:
        print(f"more than {ALL_SECONDS} s: shorten a command or the table in docs/check.py")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        STAND_INS[sys.argv[2]](sys.argv[3:])
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
