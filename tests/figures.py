"""What can be read on a figure: measured on what is drawn, in pixels."""

import itertools
from collections.abc import Iterator

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def unreadable(figure: Figure) -> list[str]:
    """Words and legends that are not whole on the figure, and titles that cover each other."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox.padded(0.5)
    found = [
        f"cut: {name}"
        for name, box in _boxes(figure)
        if not (page.contains(*box.min) and page.contains(*box.max))
    ]
    titles = [panel.title for panel in figure.axes if panel.title.get_text()]
    for one, other in itertools.combinations(titles, 2):
        if one.get_window_extent().overlaps(other.get_window_extent()):
            found.append(f"overlapping: {one.get_text()}, {other.get_text()}")
    return found


def _boxes(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    ticks = {
        id(text)
        for panel in figure.axes
        for axis in (panel.xaxis, panel.yaxis)
        for text in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        # Of the tick labels those inside the axis' limits alone are drawn: see below.
        if text.get_visible() and text.get_text() and id(text) not in ticks:
            yield text.get_text(), text.get_window_extent()
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            box = axis.get_tightbbox() if panel.axison else None
            if box is not None:
                yield f"tick labels of {panel.title.get_text()}", box
    for legend in figure.legends:
        yield "legend", legend.get_window_extent()
