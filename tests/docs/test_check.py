"""docs/check.py runs what a page prints, shortened by its table and otherwise unchanged."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from docs import check, stand_ins
from docs.check import PageError, Result
from envs.protocols import PROTOCOLS

TABLE: dict[str, dict[str, int | str]] = {
    "play.py": {"--frames": 1_000, "--games": "pong", "--grow": 10},
    "many.py": {"--frames": 1_000},
    "many.py --": {"--episodes": 1},
}


def typed(page: str, examples: Path) -> list[tuple[int, str]]:
    """Lines and commands of a page."""
    return [(command.line, command.text) for command in check.commands_of(page, examples)]


def test_all_kinds_of_code_are_found_in_order(tmp_path: Path) -> None:
    page = """\
# Title

Run `make it` or see `a.py`, `GAME`, `make`, `make it`:

    first   # a remark
    second --flag

  indented prose

```sh
third
```

```
fourth `quoted`
```
```text
nothing
```
| table | `.venv/bin/tool
x` |
"""
    assert typed(page, tmp_path) == [
        (3, "make it"),
        (5, "first   # a remark"),
        (6, "second --flag"),
        (11, "third"),
        (15, "fourth `quoted`"),
        (20, ".venv/bin/tool x"),
    ]


def test_a_command_has_as_many_lines_as_bash_needs(tmp_path: Path) -> None:
    page = """\
```
# A remark.
one \\
    --flag

for name in a b; do
    two $name
done
three "first
second"
```
"""
    commands = typed(page, tmp_path)
    assert [line for line, _ in commands] == [3, 6, 9]
    assert [text.split()[0] for _, text in commands] == ["one", "for", "three"]


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("one\n```\nnever closed\n", 2),
        ("```fortran\nprint *\n```\n", 2),
        ("one\n\n    echo 'never closed\n", 3),
        ("one\n\n    echo\n    for x in y; do\n", 4),
    ],
)
def test_a_page_that_cannot_be_read_is_refused(page: str, line: int, tmp_path: Path) -> None:
    with pytest.raises(PageError) as refused:
        check.commands_of(page, tmp_path)
    assert refused.value.line == line


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("play.py", "play.py --frames 1000"),
        ("./play.py", "./play.py --frames 1000"),
        ("play.py --frames 10000000", "play.py --frames 2000"),
        ("play.py --frames=20M --seed 3", "play.py --frames 3000 --seed 3"),
        ("play.py --frames 1e6 -- --frames 5", "play.py --frames 1100 -- --frames 5"),
        ("play.py --frames 1 --games a b --x y", "play.py --frames 1 --games a --x y"),
        ("play.py --frames 1 --games atari5 b", "play.py --frames 1 --games pong"),
        ("play.py --frames 1 --grow 500", "play.py --frames 1 --grow 10"),
        ("many.py", "many.py --frames 1000 -- --episodes 1"),
        ("many.py --frames 5 -- --x y", "many.py --frames 5 -- --episodes 1 --x y"),
        (
            "many.py --episodes 9 -- --episodes 9",
            "many.py --frames 1000 --episodes 9 -- --episodes 1",
        ),
        ("play.py --resume runs/x", "play.py --resume runs/x"),
        ("play.py --resume runs/x --frames 20M", "play.py --resume runs/x --frames 3000"),
    ],
)
def test_the_table_and_nothing_else_is_changed(
    given: str, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {("play.py", "--games"), ("play.py", "--grow")}
    monkeypatch.setattr(stand_ins, "ONLY_IF_GIVEN", only)
    assert stand_ins.shorten(given.split(), TABLE) == run.split()


def test_a_removed_file_is_not_copied(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("kept", "removed"):
        (root / name).touch()
    for args in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", root, *args], check=True)
    (root / "removed").unlink()
    (root / "link").symlink_to("nowhere")
    check.copy_tree(root, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["kept", "link"]


def test_lanes_have_every_page_once_in_order() -> None:
    pages = check.pages_of(check.ROOT)
    lanes = check.lanes_of(pages)
    assert sorted(page for lane in lanes for page in lane) == sorted(pages)
    for lane in lanes:
        assert lane == sorted(lane, key=pages.index)


def test_games_of_every_protocol_end_early() -> None:
    source = (check.ROOT / "envs/protocols.py").read_text(encoding="utf-8")
    defined: dict[str, Any] = {}
    exec(compile(stand_ins.shorten_games(source), "protocols", "exec"), defined)
    short = defined["PROTOCOLS"]
    assert short.keys() == PROTOCOLS.keys()
    for name, protocol in short.items():
        cap = stand_ins.GAME_FRAMES
        assert asdict(protocol) == asdict(replace(PROTOCOLS[name], eval_max_frames=cap))


def files_of(program: str) -> list[Path]:
    """The files of the project that a program may be."""
    module = check.ROOT / program.replace(".", "/")
    files = (check.ROOT / program, module.with_suffix(".py"), module / "__main__.py")
    return [path for path in files if path.is_file()]


def test_the_table_is_of_programs_that_exist() -> None:
    for program in stand_ins.SHORT:
        assert files_of(program.removesuffix(" --")), program


def test_programs_of_all_pages_are_in_the_table(tmp_path: Path) -> None:
    printed = {
        name
        for page in check.pages_of(check.ROOT)
        for _, command in typed((check.ROOT / page).read_text(encoding="utf-8"), tmp_path)
        for name in re.findall(r"\.venv/bin/python (?:-m )?([\w./]+)", command)
        if files_of(name)
    }
    assert "train.py" in printed
    assert printed <= stand_ins.SHORT.keys()


def test_pages_begin_commands_with_what_a_reader_has(tmp_path: Path) -> None:
    """A bare `pip` or `python` may be another one, or none."""
    known = {"make", "git", "cat", "cp", "echo", "mkdir", "for"}
    known |= {f".venv/bin/{name}" for name in stand_ins.STAND_INS}
    bare = re.compile(r"^ *(pip|python)[\d.]* ", flags=re.M)
    for page in check.pages_of(check.ROOT):
        text = (check.ROOT / page).read_text(encoding="utf-8")
        for line, command in typed(text, tmp_path):
            word = command.split()[0]
            assert word in known or re.match(r"\w+=", word), f"{page}:{line} {command}"
        for code in check.CODE.finditer(text):
            assert not bare.search(code["fenced"] or code["indented"] or ""), f"{page}: {code[0]}"


def test_pages_come_in_the_order_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "docs/more").mkdir(parents=True)
    for name in ("a.md", "b.md", "more/c.md", "more/d.md"):
        (tmp_path / "docs" / name).touch()
    (tmp_path / "README.md").write_text(
        "[c](docs/more/c.md#part) ![p](docs/p.png) [b](docs/b.md) [w](https://x.org/w.md)"
    )
    pages = ["README.md", "docs/more/c.md", "docs/b.md", "docs/a.md", "docs/more/d.md"]
    assert check.pages_of(tmp_path) == [Path(page) for page in pages]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], list[Result]]:
    """Run a page in a made-up project."""
    copy, scratch = tmp_path / "copy", tmp_path / "scratch"
    copy.mkdir()
    scratch.mkdir()
    check.make_environment(copy, scratch / "bare")

    def run(page: str) -> list[Result]:
        (copy / "README.md").write_text(page)
        return list(check.run_page(Path("README.md"), copy, scratch))

    return run


def test_commands_of_a_page_share_a_shell(run: Callable[[str], list[Result]]) -> None:
    page = '    RUN=\'a b\'\n    mkdir "$RUN" && cd "$RUN"\n    touch "../$RUN/c" && cat c\n'
    results = run(page + "\n```python\nx = 1\nassert x == 1\n```\n")
    assert [result.where for result in results] == [f"README.md:{line}" for line in (1, 2, 3, 6)]
    # The example runs where the reader is: there is no .venv in "a b".
    assert [result.failed is None for result in results] == [True, True, True, False]


@pytest.mark.parametrize(
    "broken",
    [
        "    false",
        "    for code in 3 0; do (exit $code); done",
        "    echo 'Traceback (most recent call last)'",
        "    python -c ''",
        "    .venv/bin/python other.py",
        "    .venv/bin/other",
        "    exit 0",
        "[a link](missing.md)",
        "[a link](README.md#no-such-part)",
        "```python\nraise SystemExit(3)\n```",
        "```fortran\n```",
    ],
)
def test_what_is_broken_fails(broken: str, run: Callable[[str], list[Result]]) -> None:
    results = run(f"    echo before\n\n{broken}\n")
    assert [result.where for result in results if result.failed] in (
        [["README.md:3"], ["README.md:4"]]
    )


def test_files_and_changes_of_a_page_are_made(run: Callable[[str], list[Result]]) -> None:
    page = """\
```python made.py
value = 1
```
```diff
--- a/made.py
+++ b/made.py
@@ -1 +1 @@
-value = 1
+value = 2
```
```python
import made

assert made.value == 2
```
"""
    assert [result.failed for result in run(page)] == [None, None, None]


def test_what_cannot_run_here_is_skipped_with_a_reason(run: Callable[[str], list[Result]]) -> None:
    page = """\
```text
first_output
.venv/bin/python other.py \\
    --flag
make
```

    .venv/bin/python -m pytest
    .venv/bin/pip download -d wheels torch
    .venv/bin/pip install --no-index --find-links wheels torch
"""
    results = run(page)
    assert [result.where for result in results] == [f"README.md:{n}" for n in (3, 8, 9, 10)]
    assert all(result.skipped and not result.failed for result in results)
