"""The comparison of long runs in the real window, dragged: frames a second, as they are painted. For `tests.bench.many_runs`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyqtgraph as pg
from PySide6.QtCore import QEvent, QObject, QPointF, Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtWidgets import QApplication, QWidget

from app.main import make_application, make_window
from app.services.collector import Collector
from app.widgets.compare_chart import CompareChart
from app.window import MainWindow

SIZE = (1366, 768)
FRAMES, PIXELS = 240, 3
"""Moves of the mouse, and how far each is."""
WAIT_SECONDS = 60
SETTLED_SECONDS = 2.0
PAUSE_SECONDS = 0.0005
"""Between two looks, or what is counted is the looking, and what threads lose by it."""
NONE, LEFT = Qt.MouseButton.NoButton, Qt.MouseButton.LeftButton


@dataclass(frozen=True)
class Seen:
    """Seconds of the processor until the window shows the list, and the comparison; frames that it paints in one while that
    is dragged; the longest frame."""

    list_seconds: float
    compare_seconds: float
    frames_per_second: float
    longest_frame_seconds: float


def seen_in_window(compared: int) -> Seen:
    """Of the home that is set; the newest runs are compared."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    app = make_application(["panning"])
    collector, window = Collector(), make_window(app)
    window.resize(*SIZE)
    window.show()
    settled = time.monotonic() + SETTLED_SECONDS
    _until(lambda: time.monotonic() > settled)  # what a window does as it comes up is another measure's
    began = time.process_time()
    window.studio.history.refresh()
    _until(lambda: len(window.runs.model.rows) > compared)
    window.runs.grab()
    listed = time.process_time() - began
    seconds = _compare(window, [entry.path for entry in window.studio.history.entries[:compared]])
    frames = drag(window.tabs.screens["compare"].chart)
    window.close()
    app.processEvents()
    collector.stop()
    return Seen(listed, seconds, len(frames) / sum(frames), max(frames))


def _compare(window: MainWindow, paths: list[Path]) -> float:
    """Seconds until the curves of these runs are painted, the charts being there."""
    window.studio.shown.show(*map(str, paths[:2]))
    window.go_to("compare")
    screen = window.tabs.screens["compare"]
    _until(lambda: screen.chart is not None and len(screen.chart.lines) == 2)
    began = time.process_time()
    window.studio.shown.show(*map(str, paths))
    _until(lambda: len(screen.chart.lines) == len(paths))
    window.grab()
    return time.process_time() - began


def drag(chart: CompareChart) -> list[float]:
    """To the left and back with the button held: the processor seconds of each frame until it was painted."""
    pg.setConfigOption("mouseRateLimit", 0)  # pyqtgraph lets a hand go by that is faster
    target = chart.plot.viewport()
    middle = QPointF(target.rect().center())
    view, painted, seconds = chart.plot.getPlotItem().vb, Paints(target), []
    _mouse(target, QEvent.Type.MouseButtonPress, middle, LEFT, LEFT)
    furthest, at_first = 0.0, view.viewRange()[0][0]
    for number in range(FRAMES):
        across = number + 1 if number < FRAMES / 2 else FRAMES - number
        began, before = time.process_time(), painted.count
        _mouse(target, QEvent.Type.MouseMove, middle - QPointF(PIXELS * across, 0), NONE, LEFT)
        _until(lambda before=before: painted.count > before)  # type: ignore[misc]
        seconds.append(time.process_time() - began)
        furthest = max(furthest, view.viewRange()[0][0] - at_first)
    _mouse(target, QEvent.Type.MouseButtonRelease, middle, LEFT, NONE)
    assert furthest > 0, "the curves did not follow the mouse"
    return seconds


class Paints(QObject):
    """Counts how often a widget is painted."""

    def __init__(self, target: QWidget) -> None:
        super().__init__(target)
        self.count = 0
        target.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        self.count += event.type() == QEvent.Type.Paint
        return False


def _mouse(
    target: QWidget, kind: QEvent.Type, at: QPointF, button: Qt.MouseButton, held: Qt.MouseButton
) -> None:
    event = QMouseEvent(kind, at, target.mapToGlobal(at), button, held, Qt.KeyboardModifier.NoModifier)
    QApplication.sendEvent(target, event)


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"the window did not come to it within {WAIT_SECONDS} s")
        QApplication.processEvents()
        time.sleep(PAUSE_SECONDS)
