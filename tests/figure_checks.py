"""What is written in a figure as it is drawn, and whether all of it can be read."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text


def visible_texts(figure) -> list[Text]:
    """The texts of a figure as it is drawn."""
    figure.draw_without_rendering()
    drawn = figure.findobj(Text)
    # Ticks outside the limits of their axis are kept by matplotlib and not drawn.
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [text for text in drawn if text.get_visible() and text.get_text().strip() and id(text) not in hidden]


def assert_readable(figure: Figure) -> None:
    """No text is cut, tiny, or covered by another."""
    boxes = []
    for text in visible_texts(figure):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
        assert text.get_fontsize() >= 9, text
        assert not any(box.overlaps(other) for other in boxes), text
        boxes.append(box)
