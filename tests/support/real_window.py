"""The program's window, as a person opens it, for scripts that drive it in a process of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from PySide6.QtWidgets import QApplication

from app.main import make_application, make_window
from app.services.collector import Collector
from app.services.settings import SettingsFile
from app.window import MainWindow


@contextmanager
def real_window(size: tuple[int, int] | None = None, numbers: str | None = None) -> Iterator[MainWindow]:
    """Open and loaded; closed in the end. `numbers` is the language of its numbers."""
    app = make_application([sys.argv[0]])
    collector = Collector()
    if numbers is not None:
        SettingsFile().change(numbers=numbers)
    window = make_window(app)
    if size is not None:
        window.resize(*size)
    window.show()
    window.load()
    yield window
    window.close()
    QApplication.processEvents()
    collector.stop()
