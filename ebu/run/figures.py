"""Figures on which every word can be read, however many there are and however long.

Words are shown as they are: names of games and methods may hold `$`, which is no formula.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ebu.run.files import write_whole


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend above everything, with as many columns as fit; the figure grows to hold it."""
    width, height = figure.get_size_inches()
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
        needed = legend.get_window_extent().padded(legend.borderaxespad * figure.dpi / 10)
        if needed.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    width = max(width, needed.width / figure.dpi)
    figure.set_size_inches(width, height + needed.height / figure.dpi)


def set_title(panel: Axes, title: str, inches: float) -> None:
    """Write a title in as many lines as it needs to be no wider than this."""
    text = panel.set_title(title, parse_math=False)
    characters = len(title)
    while text.get_window_extent().width > inches * panel.figure.dpi and characters > 1:
        characters -= 1
        text.set_text("\n".join(textwrap.wrap(title, characters)))


def write_figure(figure: Figure, path: Path, dpi: float | str = "figure") -> None:
    """Write a figure as a PNG file, whole or not at all. Raises `EbuError` where that fails."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    write_whole(path, content.getvalue())
