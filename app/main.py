"""The window's entry: fonts, theme, services, window. Nothing heavy is imported before the first picture."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING

from PySide6.QtCore import QTimer
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QApplication

from app import theme
from app.services.collector import Collector
from qlora_engine import child, paths

if TYPE_CHECKING:
    from app.window import MainWindow


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the window and stay until it is closed; the exit code."""
    child.forget_current_folder()
    app = make_application(list(sys.argv if arguments is None else arguments))
    keep_log()
    collector = Collector()
    window = make_window(app)
    window.show()
    QTimer.singleShot(0, window.load)
    code = app.exec()
    collector.stop()
    return code


def make_application(arguments: list[str]) -> QApplication:
    """Painting stays in one thread: Qt shares out large fills to as many as there are processors, which wakes threads 90
    times a second beside a run that needs those processors."""
    os.environ.setdefault("QT_NO_GUI_THREADPOOL", "1")
    app = QApplication(arguments)
    app.setApplicationName("qlora-studio")
    app.setApplicationDisplayName("QLoRA Studio")
    app.setDesktopFileName("qlora-studio")
    app.setWindowIcon(QIcon(str(paths.resources_dir() / "icons" / "qlora-studio.svg")))
    theme.load_fonts()
    return app


def make_window(app: QApplication) -> MainWindow:
    from app.presenters import numerals
    from app.services.number_style import style_of
    from app.studio import Studio
    from app.window import MainWindow

    studio = Studio()
    numerals.use(style_of(studio.settings.value.numbers))
    theme.apply(app, studio.settings.value.theme)
    return MainWindow(studio)


def keep_log() -> None:
    """What goes wrong unseen is written to `window.log` beside the program's other data."""
    try:
        paths.home().mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = RotatingFileHandler(
            paths.home() / "window.log", maxBytes=1_000_000, backupCount=1, encoding="utf-8", delay=True
        )
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
