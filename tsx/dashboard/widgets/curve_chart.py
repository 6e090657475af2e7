"""A chart of braille curves that fills its widget; drawn by `tsx.chart`, coloured by the sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from tsx import chart
from tsx.chart import Chart, Curve, Frame
from tsx.ink import INK_CLASSES, NUM_CURVE_INKS

_KINDS = {
    chart.AXIS: "faint",
    chart.LABEL: "muted",
    chart.TITLE: "strong",
    chart.FAULT: "fault",
    chart.GRID: "grid",
}


class CurveChart(Widget):
    """Shows the curves it was last handed; draws anew only when they or its size change."""

    COMPONENT_CLASSES: ClassVar[set[str]] = INK_CLASSES

    def __init__(self, title: str = "", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._curves: tuple[Curve, ...] = ()
        self._frame = Frame(title=title, empty_text="")  # until something was read
        self._chart: Chart | None = None

    def show(self, curves: Sequence[Curve], frame: Frame) -> None:
        """Draw these curves from now on."""
        if tuple(curves) == self._curves and frame == self._frame:
            return
        self._curves, self._frame, self._chart = tuple(curves), frame, None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one row of the chart."""
        width, height = self.size
        if self._chart is None or (self._chart.width, self._chart.height) != (width, height):
            self._chart = chart.draw(self._curves, width, height, self._frame)
        if y >= len(self._chart.rows):
            return Strip.blank(width, self.rich_style)
        segments = [Segment(text, self._style_of(code)) for text, code in self._chart.rows[y]]
        return Strip(segments, width)

    def _style_of(self, code: int) -> Style:
        """Return the style of a curve or a part of the frame."""
        kind = _KINDS.get(code) or f"curve-{code % NUM_CURVE_INKS}"
        return self.get_component_rich_style(f"ink--{kind}")
