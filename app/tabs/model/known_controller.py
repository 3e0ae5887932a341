"""Browsing the known models: judged in the background each time the list is opened, then filtered at once."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.presenters.in_window import in_window
from app.presenters.words import capital
from app.studio import Studio
from app.tabs.model.known import Judged, Wish, judged, shown, summary
from app.tabs.model.known_dialog import KnownModelsDialog
from app.tabs.model.screen import ModelScreen
from qlora_engine.errors import EngineError


class KnownModels(QObject):
    """One dialog however often it is asked for."""

    def __init__(self, studio: Studio, screen: ModelScreen) -> None:
        super().__init__(screen)
        self._studio, self._screen = studio, screen
        self._found: Judged | None = None
        self.dialog: KnownModelsDialog | None = None
        screen.browse_asked.connect(self.open)

    def open(self) -> None:
        if self.dialog is None:
            self.dialog = KnownModelsDialog(self._screen.window())
            self.dialog.wished.connect(self._show)
            self.dialog.chosen.connect(self._screen.chosen)
        config, gpu = self._studio.workspace.job.config, self._studio.workspace.memory.gpu
        self._studio.background.submit("known models", lambda: judged(config, gpu), self._take, self._fail)
        self._show(self.dialog.wish)
        self.dialog.show()
        self.dialog.raise_()
        self.dialog.activateWindow()

    def _take(self, found: Judged) -> None:
        self._found = found
        if self.dialog is not None:
            self.dialog.fill(found.rows)
            self._show(self.dialog.wish)

    def _fail(self, error: EngineError) -> None:
        if self.dialog is not None:
            self.dialog.show_only((), in_window(f"{capital(error.message)}. {capital(error.hint)}."))

    def _show(self, wish: Wish) -> None:
        names = frozenset[str]() if self._found is None else shown(self._found, wish)
        if self.dialog is not None:
            self.dialog.show_only(names, summary(self._found, len(names)))
