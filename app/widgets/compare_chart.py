"""Curves of several runs in one plot, with a crosshair that reads all of them. Imports pyqtgraph: do it late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QFrame, QSizePolicy, QVBoxLayout

from app import theme
from app.presenters import numerals
from app.presenters.words import duration_text, number_text
from app.widgets import compare_picture
from app.widgets.charts import KEYS_IN_WORDS, QuietAxis, QuietPlot, answer_key
from app.widgets.kit import label, set_tip
from app.widgets.long_curve import long_curve

LEAST_HEIGHT = 280
"""Pixels; it grows with the room that the page has."""
LINE, DOTTED, THIN = 1.8, 1.2, 1.0
"""Pixels that a line is wide. Qt draws one of one pixel ten times faster than any wider."""
REST_MS = 150
"""What is moved is drawn thin until it rests for so long."""


class CompareChart(QFrame):
    """With the keyboard: arrows move the crosshair, + and - zoom around it, Home shows everything.

    Signals: `read(texts)`: what the crosshair shows of each line, empty texts when it is gone."""

    read = Signal(tuple)

    def __init__(self) -> None:
        super().__init__()
        self.plot = QuietPlot(axisItems={side: QuietAxis(side) for side in ("left", "bottom")})
        self.plot.getPlotItem().getAxis("bottom").counted = ""  # the title says it
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setAccessibleName("Chart: the chosen runs")
        self.plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.plot.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Ignored)
        self.setMinimumHeight(LEAST_HEIGHT)
        set_tip(self.plot, "Ctrl and wheel: zoom. Drag: move. Double click: everything.")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Chart: the chosen runs")
        self.setAccessibleDescription(KEYS_IN_WORDS)
        self._title = label("", "small")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._title)
        layout.addWidget(self.plot, 1)
        self._axis, self._unit, self._is_log = "step", "", False
        self.lines: list[Any] = []
        self._rest = QTimer(self, singleShot=True, interval=REST_MS)
        self._rest.timeout.connect(self._set_pens)
        self.plot.getPlotItem().vb.sigRangeChangedManually.connect(self._move)
        self._points: list[tuple[Any, Any]] = []
        self._names: list[compare_picture.Name] = []
        self._cross = pg.InfiniteLine(angle=90, movable=False)
        self._cross.hide()
        self.plot.addItem(self._cross, ignoreBounds=True)
        self.plot.scene().sigMouseMoved.connect(self._point)
        self.plot.scene().sigMouseClicked.connect(
            lambda event: event.double() and self.plot.enableAutoRange()
        )
        self.restyle()

    def restyle(self) -> None:
        t = theme.tokens()
        self.plot.setBackground(t.panel)
        for side in ("left", "bottom"):
            axis = self.plot.getPlotItem().getAxis(side)
            axis.setPen(pg.mkPen(t.line))
            axis.setTextPen(pg.mkPen(t.quiet))
            axis.setTickFont(theme.font(theme.SMALL - 1))
        self.plot.getPlotItem().getAxis("left").setWidth(56)
        self.plot.showGrid(x=False, y=True, alpha=0.12)
        self._cross.setPen(pg.mkPen(t.quiet, style=Qt.PenStyle.DotLine))
        self.setStyleSheet(
            f"CompareChart {{ border: 1px solid {t.panel} }} CompareChart:focus {{ border-color: {t.accent} }}"
        )

    def set_scale(self, axis: str, title: str, unit: str, *, is_log: bool) -> None:
        """What is along and up."""
        self._axis, self._unit, self._is_log = axis, unit, is_log
        along = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}[axis]
        self._title.setText(f"{title} ({unit}{', log scale' if is_log else ''}) over {along}")
        self.plot.setLogMode(x=False, y=is_log)

    def show_lines(
        self, lines: Sequence[tuple[str, str, Any, Any, bool]], bounds: tuple[float, float] | None
    ) -> None:
        """(title, colour, x, y, is_dots) of each run; `bounds` of what is shown, None for everything."""
        while len(self.lines) < len(lines):
            self.lines.append(long_curve(self.plot))
        while len(self.lines) > len(lines):
            self.plot.removeItem(self.lines.pop())
        self._points, self._names = [], [(title, colour, dots) for title, colour, _, _, dots in lines]
        self._set_pens()
        for item, (_, colour, x, y, is_dots) in zip(self.lines, lines, strict=True):
            xs, ys = np.array(x, dtype=float), np.array(y, dtype=float)
            item.setSymbol("o" if is_dots else None)
            item.setSymbolBrush(colour)
            item.setData(xs, ys)
            item.setLogMode(False, self._is_log)
            self._points.append((xs, ys))
        self._set_bounds(bounds)

    def _set_pens(self) -> None:
        """As they are at rest, or thin while they are moved."""
        for item, (_, colour, is_dots) in zip(self.lines, self._names, strict=True):
            wide = DOTTED if is_dots else LINE
            item.setPen(pg.mkPen(colour, width=THIN if self._rest.isActive() else wide))

    def _move(self, *_: object) -> None:
        """By a hand: many frames a second of many long lines."""
        was_at_rest = not self._rest.isActive()
        self._rest.start()
        if was_at_rest:
            self._set_pens()

    def show_line(self, place: int, is_shown: bool) -> None:
        if place < len(self.lines):
            self.lines[place].setVisible(is_shown)

    def save(self, path: Path, *, is_drawing: bool) -> None:
        """As it is seen, with the names of its lines, as a picture or as a drawing that scales.

        Raises:
            OSError: it cannot be written.
        """
        seen = [name for name, item in zip(self._names, self.lines, strict=True) if item.isVisible()]
        self._cross.hide()
        compare_picture.save(path, self.plot, self._title.text(), seen, is_drawing=is_drawing)

    def texts_at(self, x: float) -> tuple[str, ...]:
        """Of each line its last value at or before `x`."""
        found = []
        for xs, ys in self._points:
            place = int(np.searchsorted(xs, x, side="right")) - 1
            is_known = place >= 0 and (x <= xs[-1] if len(xs) else False) and np.isfinite(ys[place])
            found.append(
                f"{numerals.measured(number_text(float(ys[place])), self._unit)} at {self._along(float(xs[place]))}"
                if is_known
                else ""
            )
        return tuple(found)

    def _along(self, x: float) -> str:
        if self._axis == "seconds":
            return duration_text(x)
        whole = numerals.count(round(x))
        return f"step {whole}" if self._axis == "step" else f"{whole} tokens"

    def _set_bounds(self, bounds: tuple[float, float] | None) -> None:
        if bounds is None:
            self.plot.enableAutoRange()
            return
        low, high = bounds
        if self._is_log:
            low, high = np.log10(max(low, 1e-9)), np.log10(max(high, 1e-9))
        self.plot.enableAutoRange(axis="x")
        self.plot.setYRange(low, high)

    def _point(self, position: QPointF) -> None:
        view = self.plot.getPlotItem().vb
        is_inside = view.sceneBoundingRect().contains(position)
        if is_inside:
            self._read_at(view.mapSceneToView(position).x())
        else:
            self._cross.hide()
            self.read.emit(("",) * len(self.lines))

    def _read_at(self, x: float) -> None:
        self._cross.setPos(x)
        self._cross.show()
        self.read.emit(self.texts_at(x))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if not answer_key(event, self.plot, self._cross, self._read_at):
            super().keyPressEvent(event)
