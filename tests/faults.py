"""Kills, failing calls and damaged files in bulk: the next start ends as if nothing had happened.

    python -m tests.faults --minutes 90 --processes 2

Three parts, of cases that are functions of their numbers:

| part | case |
| --- | --- |
| kills | a command is killed at a random call that touches files, then perhaps killed again or |
| | given failing calls; the last start is left alone and must end as one never touched |
| calls | of a command each such call, one after the other, fails once or from then on; the next |
| | start must end as one never touched |
| files | of a command killed halfway each file is flipped, cut, emptied, swapped, replaced by a |
| | link, a pipe, a directory, or removed; the next start ends with one line, or with the weights |
| | of one never touched |
"""

import argparse
import errno
import multiprocessing
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.damage import HOW, damage, quick_directory
from tests.fault_settings import (
    SAVED_SELDOM,
    SETTINGS,
    Prepared,
    prepared,
    shrink,
    train_teachers,
    weights_among,
)
from tests.faulty_calls import ERRNOS, READING, Fault

SHARES = 8
"""Long lists of cases are done in this many parts."""


class Case(NamedTuple):
    """What is done to which command."""

    part: str
    name: str
    number: int

    def __str__(self) -> str:
        return "/".join(map(str, self))


def kill(setting: Prepared, out: Path, rng: random.Random) -> Iterator[str]:
    """Kill it at a random call, sometimes again, or let calls fail; yields what happens."""
    for start in range(rng.choice((1, 1, 2, 3))):
        number = None if start == 0 else rng.choice((None, None, *ERRNOS))
        at, lasting = rng.randrange(1, len(setting.calls) + 1), rng.random() < 0.5
        code, _ = setting.start(out, Fault(out, at, number, lasting=lasting))
        if code == -signal.SIGKILL:
            yield "kills"
        elif code in (0, 1, 2):
            yield "failing calls" if number else "ends before the kill"
        else:
            raise AssertionError(f"exit code {code}: {setting.said()}")
    finish(setting, out)


def finish(setting: Prepared, out: Path) -> None:
    """Start it once more: it must leave what it should."""
    code, _ = setting.start(out)
    said = setting.said()
    assert code == 0, f"exit code {code} at last: {said}"
    assert "Traceback" not in said, said
    differences = setting.differences(out)
    assert not differences, f"differs in {', '.join(differences)}: {said}"


def failures_of(setting: Prepared) -> list[tuple[int, int, bool]]:
    """Each of its calls with an error, once and from then on; of a training, with every error."""
    found = []
    for place, call in enumerate(setting.calls):
        errors = ERRNOS if setting.name == "a training" else (ERRNOS[place % len(ERRNOS)],)
        for lasting in (False, True):
            found += [(place, number, lasting) for number in errors]
            if call in READING:
                found[-len(errors) :] = [(place, errno.EIO, lasting)]
    return found


def fail(setting: Prepared, out: Path, number: int) -> Iterator[str]:
    """Let one call of it fail; see `failures_of`."""
    place, which, lasting = failures_of(setting)[number]
    code, calls = setting.start(out, Fault(out, place + 1, which, lasting=lasting))
    said = setting.said()
    what = f"{errno.errorcode[which]} at {' '.join(calls[max(0, place - 3) : place + 1])}"
    assert code in (0, 1, 2), f"{what}: exit code {code}: {said}"
    assert "Traceback" not in said, f"{what}: {said}"
    yield "failing calls"
    try:
        finish(setting, out)
    except AssertionError as error:
        raise AssertionError(f"{what}: {said}{error}") from error


def alter(setting: Prepared, out: Path, number: int) -> Iterator[str]:
    """Damage a file of it, halfway, by its place and how; then start it."""
    place, which = divmod(number, len(HOW))
    shutil.copytree(setting.half(), out)
    outside = out.with_name("outside")
    outside.write_bytes(b"another's")
    files = files_of(out)
    what = f"{files[place].relative_to(out)}, {HOW[which]}"
    damage(files[place], HOW[which], files, random.Random(number), outside=outside)
    code, _ = setting.start(out)
    said = setting.said()
    errors = [line for line in said.splitlines() if "error: " in line]
    assert code in (0, 1, 2), f"{what}: exit code {code}: {said}"
    assert "Traceback" not in said, f"{what}: {said}"
    assert len(errors) == (code != 0), f"{what}: exit code {code}: {said}"
    assert outside.read_bytes() == b"another's", f"{what}: wrote outside"
    if code == 0:
        # States whose damage changed nothing that was read stay as they are.
        damaged = files[place] if "states" in files[place].parts else out
        differences = [
            name
            for name in weights_among(setting.differences(out))
            if not damaged.is_relative_to(out / name)
        ]
        assert not differences, f"{what}: differs in {', '.join(differences)}: {said}"
    yield f"damaged files, exit code {code}"


def files_of(directory: Path) -> list[Path]:
    """The files in a directory, in order."""
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


PARTS = {
    "kills": tuple(SETTINGS),
    "files": tuple(SAVED_SELDOM),
    "calls": tuple(SAVED_SELDOM),
}


def count_of(part: str, setting: Prepared, kills: int) -> int:
    """How many cases there are."""
    if part == "kills":
        return kills
    if part == "files":
        return len(files_of(setting.half())) * len(HOW)
    return len(failures_of(setting))


def attempt(case: Case, root: Path, seed: int) -> tuple[Counter[str], str]:
    """Try a case; what happened in it, and what is wrong, if anything is."""
    setting = prepared(case.name, root)
    out = setting.directory / f"{case.part}{case.number}"
    match case.part:
        case "kills":
            events = kill(setting, out, random.Random(f"{seed}-{case}"))
        case "files":
            events = alter(setting, out, case.number)
        case _:
            events = fail(setting, out, case.number)
    happened = Counter({f"cases of {case.part}": 1})
    wrong = ""
    try:
        for event in events:
            happened[event] += 1
    except Exception as error:
        said = str(error) if isinstance(error, AssertionError) else repr(error)
        wrong = f"{case}: {said[-2000:]}"
    shutil.rmtree(out, ignore_errors=True)
    return happened, wrong


class Work(NamedTuple):
    """A share of the cases of a part."""

    part: str
    name: str
    share: int
    shares: int


def plan(parts: Sequence[str], only: Sequence[str]) -> list[Work]:
    """All work, in the order in which it is done."""
    found = []
    for part in parts:
        shares = 1 if part == "kills" else SHARES
        names = [name for name in PARTS[part] if not only or name in only]
        found += [Work(part, name, share, shares) for share in range(shares) for name in names]
    return found


def carry_out(
    work: Work, root: Path, kills: int, seed: int, until: float
) -> tuple[Work, Counter[str], list[str]]:
    """Try a share of cases while there is time; what happened, and what was wrong."""
    mine = root / str(multiprocessing.current_process().name)
    mine.mkdir(exist_ok=True)
    if not (mine / "teachers").exists():
        (mine / "teachers").symlink_to(root / "teachers")
    happened, wrong = Counter[str](), []
    count = count_of(work.part, prepared(work.name, mine), kills)
    numbers = range(work.share, count, work.shares)
    for done, number in enumerate(numbers):
        if time.monotonic() > until:
            happened["cases left out"] += len(numbers) - done
            break
        met, how = attempt(Case(work.part, work.name, number), mine, seed)
        happened += met
        wrong += [how] * bool(how)
    return work, happened, wrong


def main() -> None:
    """Try cases until all are done or the time is over, and print the counts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=7, help="cases of each command")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=90.0)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options.add_argument("--only", nargs="+", default=[], help="commands")
    options.add_argument("--case", help="this one alone, as it was named")
    given = options.parse_args()
    began = time.monotonic()
    until = began + 60 * given.minutes
    shrink()
    happened, count = Counter[str](), 0
    with quick_directory() as directory:
        root = Path(directory)
        train_teachers(root / "teachers")
        if given.case:
            part, name, number = given.case.rsplit("/", 2)
            print(attempt(Case(part, name, int(number)), root, given.seed))
            return
        context = multiprocessing.get_context("fork")
        with context.Pool(given.processes) as pool:
            tasks = [
                pool.apply_async(carry_out, (work, root, given.kills, given.seed, until))
                for work in plan(given.parts, given.only)
            ]
            for task in tasks:
                work, met, wrong = task.get()
                happened += met
                count += len(wrong)
                seconds = time.monotonic() - began
                print(f"{seconds:7,.0f} s {work.part} {work.name}: {dict(met)}", flush=True)
                for each in wrong:
                    print(f"WRONG {each}", flush=True)
    print(f"{dict(happened)}: {count} wrong, {time.monotonic() - began:,.0f} s")
    if happened["cases left out"]:
        sys.exit("not all was tried: give it more --minutes")
    sys.exit(bool(count))


if __name__ == "__main__":
    main()
