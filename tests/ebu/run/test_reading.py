"""Files of strangers: read as what they should be, or refused in one line, at once."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from ebu.errors import EbuError
from ebu.run.directory import open_run_directory, read_config
from ebu.run.files import write_whole
from ebu.run.reading import (
    MOST_NESTED,
    RefusedFileError,
    check_directory,
    check_fits,
    parse_json,
    read_file,
    read_json,
)


def link_out(path: Path) -> None:
    outside = path.parents[1] / "precious"
    outside.write_text("precious")
    path.symlink_to(outside)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parents[1] / "absent")


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a link out": link_out,
    "a link to nothing": link_to_nothing,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a socket": bind,
}
hostile = pytest.mark.parametrize("place", HOSTILE.values(), ids=HOSTILE)


@hostile
def test_no_file_but_a_regular_one_of_the_directory_is_read(
    tmp_path: Path, place: Callable[[Path], None]
) -> None:
    path = tmp_path / "run" / "file.json"
    path.parent.mkdir()
    place(path)
    with pytest.raises((RefusedFileError, FileNotFoundError)):
        read_file(path)


def test_a_directory_and_a_file_that_is_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedFileError, match="no regular file"):
        read_file(tmp_path)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RefusedFileError, match=r"1,099,511,627,776 bytes"):
        read_json(tmp_path / "long")


CONFIG = {"settings": {"game": "pong"}, "environment": {"num_actions": 6}}


@hostile
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", ".config.json", "lock", "metrics.jsonl", "evaluations.jsonl"),
        *("checkpoints", "best", "evaluations", "events.out.tfevents.1", "students/net1"),
    ],
)
def test_a_run_directory_that_leads_out_of_itself_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, place: Callable[[Path], None]
) -> None:
    run_dir = tmp_path / "run"
    path = run_dir / name
    path.parent.mkdir(parents=True)
    if name != "config.json":
        (run_dir / "config.json").write_text(json.dumps(CONFIG))
    place(run_dir / "pre")
    (run_dir / "pre").rename(path)
    with pytest.raises(EbuError, match=r"link out|no regular file") as error:
        read_config(run_dir)
    assert "\n" not in str(error.value)
    with pytest.raises(EbuError):
        open_run_directory(run_dir, CONFIG, may_change=frozenset(), may_grow=frozenset())
    if place is link_out:
        assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_links_inside_of_the_directory_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text("[1]")
    (tmp_path / "two.json").symlink_to("one.json")
    check_directory(tmp_path)
    assert read_json(tmp_path / "two.json") == [1]


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".result.json").symlink_to("../precious")
    with pytest.raises(EbuError, match=r"cannot write .*result\.json: it is a link"):
        write_whole(tmp_path / "run" / "result.json", b"other")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_new_file_takes_the_place_of_no_link_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(EbuError, match=rf"cannot write .*{name}: it is"):
            write_whole(tmp_path / name, b"other")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "precious"]


def test_nesting_and_numbers_are_bounded() -> None:
    for depth, fits in ((MOST_NESTED, True), (MOST_NESTED + 1, False), (100_000, False)):
        for opened, closed in (("[", "]"), ('{"a":', "}")):
            text = opened * depth + ("1" if opened != "[" else "") + closed * depth
            if fits:
                parse_json(text)
            else:
                with pytest.raises(RefusedFileError, match="nested too deep"):
                    parse_json(text)
    for number in ("NaN", "Infinity", "-Infinity", "1e400", "[[-1e999]]", '{"a": [NaN]}'):
        with pytest.raises(RefusedFileError, match="not finite"):
            parse_json(number)
        parse_json(number, finite=False)
    damaged: list[str | bytes] = ["", "{", "1" * 5000, b"\xff\xfe\x00", b"\xed\xa0\x80"]
    for content in damaged:
        with pytest.raises(RefusedFileError):
            parse_json(content)


class Part(TypedDict):
    """Of a record."""

    count: int
    share: float | None


class Whole(TypedDict):
    """A record."""

    name: str
    parts: list[Part]
    kind: NotRequired[Literal["one", "two"]]
    by_name: NotRequired[dict[str, float]]


GOOD: dict[str, Any] = {"name": "x", "parts": [{"count": 1, "share": 2}], "more": [None]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, "name is 1"),
        ({"name": None}, "name is None"),
        ({"parts": {}}, "parts is {}"),
        ({"parts": [{"count": 1}]}, "parts is "),
        ({"parts": [{"count": True, "share": 1.0}]}, "parts is "),
        ({"parts": [{"count": 2**63, "share": 1.0}]}, "parts is "),
        ({"parts": [{"count": 1.0, "share": 1.0}]}, "parts is "),
        ({"parts": [{"count": 1, "share": float("inf")}]}, "parts is "),
        ({"kind": "three"}, "kind is 'three'"),
        ({"kind": ["one"]}, "kind is "),
        ({"by_name": {"x": "y"}}, "by_name is "),
    ],
)
def test_a_record_of_another_type_is_refused_by_the_name_of_the_key(
    change: dict[str, Any], said: str
) -> None:
    check_fits(GOOD | {"kind": "one", "by_name": {"x": 1}}, Whole)
    with pytest.raises(RefusedFileError) as error:
        check_fits(GOOD | change, Whole)
    assert said in str(error.value)
    with pytest.raises(RefusedFileError, match="lacks name"):
        check_fits({"parts": []}, Whole)
