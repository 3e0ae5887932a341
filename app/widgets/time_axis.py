"""The window of time that charts share: it follows the newest sample until it is paused, zoomed or moved."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

LEAST_SPAN = 2.0
USUAL_SPAN = 600.0
SHORTEST_FOLLOWED = 30.0
"""Seconds that a following chart spans at least, however little was sampled."""


class TimeAxis(QObject):
    """Signals: `changed` when the window of time is another, `pointed` when the crosshair moved.

    Times are Unix seconds; `zero` is what the labels count from. `span` None shows everything.
    """

    changed = Signal()
    pointed = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.span: float | None = USUAL_SPAN
        self.cursor: float | None = None
        self.zero = self.first = self.newest = 0.0
        self._end: float | None = None

    @property
    def is_following(self) -> bool:
        return self._end is None

    @property
    def window(self) -> tuple[float, float]:
        end = self.newest if self._end is None else self._end
        start = self.first if self.span is None else end - self.span
        if self.span is not None and self._end is None:
            start = max(
                start, min(self.first, end - SHORTEST_FOLLOWED)
            )  # no empty past before the first sample
        return start, max(end, start + LEAST_SPAN)

    def know(self, first: float, newest: float) -> None:
        """How far the samples reach; tells nobody, since whoever says it paints."""
        self.first, self.newest = first, newest

    def show_span(self, seconds: float | None) -> None:
        """The last `seconds`, or all; goes on following if it was."""
        self.span = seconds
        if seconds is None and self._end is not None:
            self._end = self.newest
        self.changed.emit()

    def pause(self, is_paused: bool) -> None:
        """Hold the picture still; sampling goes on."""
        start, end = self.window
        if is_paused and self.span is None:
            self.span = end - start
        self._end = end if is_paused else None
        self.changed.emit()

    def reset(self) -> None:
        """Follow again, as at the beginning."""
        self.span, self._end = USUAL_SPAN, None
        self.changed.emit()

    def zoom(self, factor: float, at: float) -> None:
        """Less (`factor` below 1) or more time around `at`."""
        start, end = self.window
        whole = max(end, self.newest) - min(start, self.first)
        span = min(max(LEAST_SPAN, (end - start) * factor), max(whole, LEAST_SPAN))
        at = min(max(at, start), end)
        self._show(span, at + (end - at) * span / (end - start))

    def move(self, seconds: float) -> None:
        start, end = self.window
        self._show(end - start, end + seconds)

    def _show(self, span: float, end: float) -> None:
        """Half of the window at least stays on what was sampled; one that reaches the newest sample follows again."""
        end = max(end, self.first + span / 2)
        self.span, self._end = span, None if end >= self.newest else end
        self.changed.emit()

    def point(self, at: float | None) -> None:
        self.cursor = at
        self.pointed.emit()
