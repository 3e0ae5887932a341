"""Makes the charts in turns of some milliseconds, once somebody wants them, and hands them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PySide6.QtCore import QObject, QTimer

from app.frame.chart_import import import_in_turns, import_without_qt
from app.services.background import Background

STOP = object()


class ChartMaking(QObject):
    """Importing the chart library takes over half a second: half of it in a pool thread, half in many turns.

    `parts` makes charts, None until they can be made.
    """

    def __init__(self, parent: QObject, background: Background, done: Callable[[Any], None]) -> None:
        super().__init__(parent)
        self._background, self._done = background, done
        self.parts: Any = None
        self._is_wanted = False
        self._turns: Iterator[Any] = iter(())
        self._timer = QTimer(self, interval=0)
        self._timer.timeout.connect(self._next_turn)

    def want(self) -> None:
        if not self._is_wanted:
            self._is_wanted = True
            self._background.submit("charts", import_without_qt, lambda _: self._begin())

    def _begin(self) -> None:
        self._turns = self._in_turns()
        self._timer.start()

    def _next_turn(self) -> None:
        found = next(self._turns, STOP)
        if found is STOP:
            self._timer.stop()
        elif found is not None:
            self.parts = found
            self._done(found)

    def _in_turns(self) -> Iterator[Any]:
        """Each chart is made in a turn of its own, so that the event loop is never held up for long."""
        yield from import_in_turns()
        from app.widgets.run_charts import ChartParts

        parts = ChartParts()
        while parts.make_next():
            yield None
        yield parts
