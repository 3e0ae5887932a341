"""Imports the chart library a bit at a time, so that the event loop is never held up for long."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

QT_MODULES = ("QtCore", "QtGui", "QtWidgets", "QtSvg", "QtTest", "QtOpenGL", "QtOpenGLWidgets")
"""What pyqtgraph looks through; not every installation has all of them."""
NAMES_AT_ONCE = 40


def import_without_qt() -> None:
    """What of the chart library has nothing to do with Qt; for a pool thread.

    Nothing that defines or first uses a Qt class may be imported there: see `app.services.gui_calls`.
    """
    for name in (
        "numpy", "numpy.typing", "multiprocessing.connection", "xml.etree.ElementTree", "cProfile", "pstats", "pydoc",
        "qlora_engine.monitor.residency", "qlora_engine.monitor.series", "qlora_engine.monitor.trace",
    ):  # fmt: skip
        importlib.import_module(name)


def import_in_turns() -> Iterator[None]:
    """The rest, in the GUI thread: do something else after each turn.

    pyqtgraph uses every class of these modules while it is imported, and PySide makes each at its first use, which is
    most of the time that the import takes; so they are used here first.
    """
    for module in QT_MODULES:
        with contextlib.suppress(ImportError):
            found = importlib.import_module(f"PySide6.{module}")
            yield
            names = dir(found)
            for first in range(0, len(names), NAMES_AT_ONCE):
                for name in names[first : first + NAMES_AT_ONCE]:
                    getattr(found, name)
                yield
    importlib.import_module("pyqtgraph")
    yield
    importlib.import_module("app.widgets.run_charts")
