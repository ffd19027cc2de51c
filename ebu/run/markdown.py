"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

NONE = "–"
"""The cell of what there is not."""


def table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; what a cell holds, also a bar or several lines, stays in it."""
    lines = [[_cell(each) for each in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).splitlines()).replace("|", "\\|")
