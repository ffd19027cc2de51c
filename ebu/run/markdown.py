"""Tables in Markdown."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")

NONE = "–"
"""The cell of what there is not."""


def table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; what a cell holds, also a bar or several lines, stays in it."""
    lines = [[_cell(each) for each in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of(items: Iterable[ItemT], *columns: tuple[str, Callable[[ItemT], object]]) -> str:
    """A table with a row for each item, from columns: each a header, and the cell of an item."""
    header = [name for name, _ in columns]
    return table(header, ([cell(item) for _, cell in columns] for item in items))


def _cell(value: object) -> str:
    return " ".join(str(value).splitlines()).replace("|", "\\|")
