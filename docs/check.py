"""Run all commands and Python examples of README.md and docs, shortened, as a reader would.

    .venv/bin/python -m docs.check                      every page
    .venv/bin/python -m docs.check README.md docs/study.md

README and the pages that use its runs are one half of the pages, the rest is the other. Both
halves run at once, in the order in which README links pages, each in a copy of the files that git
does not ignore and on half of the cores. A page has one shell, in which its commands run exactly as
printed. The copy's `.venv` has the packages of the one that runs this, and the programs of
`docs/stand_ins.py`, which shorten what they are given; its protocols end games early. A command
fails if it ends with another code than 0 or prints a traceback; a link fails if its file is
missing. Exit code 1 if anything failed, or it all took over 15 minutes.

| on a page | what is done |
| --- | --- |
| indented block; fenced `sh` or without a language | run by bash, command by command |
| code in a sentence that begins with a program, such as `make train` | run, unless run before |
| fenced `python` | run by the copy's Python; with a path after `python`, written to that file |
| fenced `diff` | applied to the copy |
| fenced `text`: lines that begin with `make` or `.venv/bin/` | reported as skipped |
| the rest of fenced `text`; `json` | nothing |
"""

import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from docs.stand_ins import RUN_AS, SKIPPED, STAND_INS, shorten_games

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("make", *STAND_INS, "python3")
COMMAND_SECONDS = ALL_SECONDS = 900
SECOND_LANE = re.compile("distillation|results|agents_measured")
# Printed by the shell after each command, with its exit code.
MARK = "@@docs-check@@"
CODE = re.compile(
    r"^ *(?P<fence>```+)(?P<info>[^`\n]*)\n(?:(?P<fenced>(?:.*\n)*?) *(?P=fence) *$|(?P<open>))"
    r"|(?:\A|(?<=\n\n))(?P<indented>(?: {4}.*\n)(?: {4}.*\n| *\n(?= {4}))*)"
    r"|`(?P<inline>[^`\n]+(?:\n[^`\n]+)*)`",
    flags=re.M,
)


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


def pages_of(root: Path) -> list[Path]:
    """README.md and the pages of docs, those it links first, in that order."""
    links = links_of((root / "README.md").read_text(encoding="utf-8"))
    linked = [Path(os.path.normpath(target.partition("#")[0])) for _, target in links]
    # What a model card says is typed where its folder was downloaded.
    others = sorted(
        path.relative_to(root)
        for path in (root / "docs").rglob("*.md")
        if not (path.parent / "config.json").exists()
    )
    return list(dict.fromkeys([Path("README.md"), *(p for p in linked if p in others), *others]))


def lanes_of(pages: Sequence[Path]) -> list[list[Path]]:
    """Pages that run side by side: none needs what a page of the other half makes."""
    lanes: list[list[Path]] = [[], []]
    for page in pages:
        lanes[bool(SECOND_LANE.search(str(page)))].append(page)
    return lanes


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
    return heading in [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in titles]


def commands_of(text: str, examples: Path) -> list[Command]:
    """What a page's reader types, in order; Python examples are written below `examples`.

    Raises `PageError` for a language that is not known and for a command that never ends.
    """
    commands: list[Command] = []
    for found in CODE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        language, _, path = (found["info"] or "").strip().partition(" ")
        if found["open"] is not None:
            raise PageError(line, "a fenced block is never closed")
        if found["inline"]:
            words = found["inline"].split()
            program = words[0] if words else ""
            if program.startswith(".venv/bin/") or (program in PROGRAMS and len(words) > 1):
                typed = " ".join(words)
                if typed not in [before.text for before in commands]:
                    commands.append(Command(line, typed, typed))
        elif language in ("", "sh"):
            block = found["indented"] or found["fenced"]
            commands += _split(block, line + (found["indented"] is None))
        elif language in ("python", "diff"):
            source = examples / f"{len(commands)}.{language}"
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(found["fenced"], encoding="utf-8")
            quoted = shlex.quote(str(source))
            run, shown = f".venv/bin/python - < {quoted}", "the Python example"
            if language == "diff":
                run, shown = f"git apply {quoted}", "the change to files"
            elif path:
                run, shown = f"cp {quoted} {shlex.quote(path)}", f"the file {path}"
            commands.append(Command(line + 1, run, shown))
        elif language == "text":
            # What takes hours, several machines, or files that are not here.
            for number, typed in enumerate(found["fenced"].splitlines(), line + 1):
                if typed.startswith(("make ", ".venv/bin/")):
                    say = f"echo '{SKIPPED}its block is marked as text'"
                    commands.append(Command(number, say, typed))
        elif language != "json":
            raise PageError(line + 1, f"code in '{language}': not sh, python, diff, text or json")
    return commands


def _split(block: str, line: int) -> Iterator[Command]:
    """The commands of a block that begins in a line: as many lines to each as bash needs."""
    lines: list[str] = []
    for number, each in enumerate(block.splitlines(), line):
        if not lines and (not each.strip() or each.lstrip().startswith("#")):
            continue
        lines.append(each.removeprefix("    "))
        text = "\n".join(lines)
        whole = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        if not each.endswith("\\") and whole.returncode == 0:
            yield Command(number + 1 - len(lines), text, " ".join(text.split()))
            lines = []
    if lines:
        begin = line + len(block.splitlines()) - len(lines)
        raise PageError(begin, f"bash waits for the rest of: {lines[0].strip()}")


def copy_tree(root: Path, to: Path) -> None:
    """Copy the files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        # Removed, and not yet from git's index.
        if not os.path.lexists(root / name):
            continue
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
    stand_ins = shlex.quote(str(ROOT / "docs/stand_ins.py"))
    for name in STAND_INS:
        run = f'exec {shlex.quote(str(interpreter))} {stand_ins} {name} "$@"'
        say = f"echo '{name} may not be there: write .venv/bin/{name}' >&2; exit 127"
        for program, line in ((programs / name, run), (bare / name, say)):
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)


class Result(NamedTuple):
    """A command of a page, how long it took, why it failed or was skipped, and how it was run."""

    where: str
    shown: str
    seconds: float = 0.0
    failed: str | None = None
    skipped: str | None = None
    shortened: tuple[str, ...] = ()

    def __str__(self) -> str:
        state = "FAILED" if self.failed else "skipped" if self.skipped else "ok"
        why = self.failed or self.skipped
        line = f"{self.seconds:6.1f} s  {state:7}  {self.where}  {self.shown}"
        runs = [f"    {run}" for run in self.shortened]
        return "\n".join([line + (f": {why}" if why else ""), *runs])


def run_page(page: Path, copy: Path, scratch: Path) -> Iterator[Result]:
    """Check the links of a page and run its commands; stop where the shell is lost."""
    text = (copy / page).read_text(encoding="utf-8")
    for line, target in links_of(text):
        if not leads_somewhere(copy / page, target):
            yield Result(f"{page}:{line}", f"the link to {target}", failed="leads nowhere")
    folder = scratch / str(page).replace("/", "-")
    try:
        commands = commands_of(text, folder)
    except PageError as error:
        yield Result(f"{page}:{error.line}", "the page", failed=str(error))
        return
    # A command that fails inside a loop counts, too.
    script = "set -E; trap 'failed=$?' ERR\n" + "".join(
        f"failed=0; {{ {command.text}\n}} </dev/null\nprintf '\\n{MARK}%d\\n' $failed\n"
        for command in commands
    )
    folder.mkdir(exist_ok=True)
    (folder / "script").write_text(script, encoding="utf-8")
    env = {**os.environ, "PATH": f"{scratch / 'bare'}:{os.environ['PATH']}"}
    env.pop("VIRTUAL_ENV", None)
    bash = subprocess.Popen(
        ["bash", str(folder / "script")],
        cwd=copy,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        for command in commands:
            begun = time.monotonic()
            status, printed = _run_to_mark(bash)
            skipped = re.findall(rf"^{SKIPPED}(.*)$", printed, flags=re.M)
            failed = None
            if status != "0":
                failed = f"exit code {status}" if status else "the shell ended, or took too long"
            elif "Traceback (most recent call last)" in printed:
                failed = "a traceback"
            if failed:
                failed += "".join(f"\n    {line}" for line in printed.splitlines()[-15:])
            yield Result(
                f"{page}:{command.line}",
                command.shown,
                time.monotonic() - begun,
                failed,
                None if failed or not skipped else skipped[0],
                tuple(re.findall(rf"^{RUN_AS}(.*)$", printed, flags=re.M)),
            )
            if not status:
                return
    finally:
        _kill(bash)
        bash.communicate()


def _run_to_mark(bash: subprocess.Popen[str]) -> tuple[str, str]:
    """The exit code of the command that runs, empty if the shell ended, and what it printed."""
    assert bash.stdout is not None
    timer = threading.Timer(COMMAND_SECONDS, _kill, (bash,))
    timer.start()
    printed = ""
    try:
        for line in bash.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip(), printed
            printed += line
        return "", printed
    finally:
        timer.cancel()


def _kill(bash: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(bash.pid, signal.SIGKILL)


def run_lanes(lanes: Sequence[Sequence[Path]]) -> int:
    """Check each lane in a process, with a part of the cores; 1 if anything failed."""
    cores = sorted(os.sched_getaffinity(0))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, pages in enumerate(lanes):
            command = [sys.executable, "-m", "docs.check", *map(str, pages)]
            own = cores[number :: len(lanes)] or cores
            pin = functools.partial(os.sched_setaffinity, 0, own)
            processes.append(subprocess.Popen(command, cwd=ROOT, preexec_fn=pin))
        codes = [process.wait() for process in processes]
        return int(any(codes))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def run_pages(pages: Sequence[Path]) -> int:
    """Check pages one after the other; 1 if anything failed."""
    began = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(prefix="docs-check-") as folder:
        copy, scratch = Path(folder, "copy"), Path(folder, "scratch")
        scratch.mkdir()
        copy_tree(ROOT, copy)
        protocols = copy / "envs/protocols.py"
        protocols.write_text(shorten_games(protocols.read_text()))
        make_environment(copy, scratch / "bare")
        for page in pages:
            for result in run_page(page, copy, scratch):
                results.append(result)
                print(result, flush=True)
    failed = sum(result.failed is not None for result in results)
    skipped = sum(result.skipped is not None for result in results)
    seconds, cpu = time.monotonic() - began, sum(os.times()[:4])
    print(
        f"{len(results)} commands: {failed} failed, {skipped} skipped; {seconds:.0f} s, "
        f"{cpu:.0f} s of processor time"
    )
    if seconds > ALL_SECONDS:
        print(f"more than {ALL_SECONDS} s: shorten a command or the table in docs/stand_ins.py")
    return 1 if failed or seconds > ALL_SECONDS else 0


if __name__ == "__main__":
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    given = list(map(Path, sys.argv[1:]))
    sys.exit(run_pages(given) if given else run_lanes(lanes_of(pages_of(ROOT))))
