"""What opens beside the window and goes with it: the help and the settings. Neither takes a click away from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QApplication, QWidget

from app import theme as looks
from app.dialogs import HelpWindow, SettingsDialog
from app.frame.tabs import RunTabs
from app.presenters.in_window import in_window
from app.services import hub_token
from app.studio import Studio
from qlora_engine import home_choice, paths
from qlora_engine.errors import EngineError


class Beside(QObject):
    def __init__(self, window: QWidget, studio: Studio, tabs: RunTabs) -> None:
        super().__init__(window)
        self._window, self._studio, self._tabs = window, studio, tabs
        self.help: HelpWindow | None = None
        self.settings: SettingsDialog | None = None
        looks.when_desktop_changes(self._follow_desktop)

    def open_help(self, page: str = "") -> None:
        """At a page, else at what tells of the tab one is on; one window however often it is asked for."""
        self.help = self.help or HelpWindow()
        self.help.open_at(page or self._tabs.tabs[self._tabs.current].help)

    def open_settings(self) -> None:
        if self.settings is not None:
            self.settings.close()
            self.settings.deleteLater()
        self.settings = SettingsDialog(self._window, self._studio.settings.value, self.choose_setting)
        form = self.settings.token
        form.save_asked.connect(lambda token: self._with_token(lambda: hub_token.keep(token)))
        form.forget_asked.connect(lambda: self._with_token(hub_token.forget))
        self._with_token(hub_token.is_kept)
        self.settings.home.home_asked.connect(self._choose_home)
        self._show_home()
        self.settings.show()

    def _choose_home(self, folder: Path | None) -> None:
        try:
            home_choice.choose(folder)
        except EngineError as error:
            self._show_home(in_window(f"{error.message}; {error.hint}"))
        else:
            self._show_home()

    def _show_home(self, problem: str = "") -> None:
        if self.settings is not None:
            is_told = paths.HOME_VARIABLE in os.environ
            self.settings.home.show_home(
                paths.home(), paths.next_home(), paths.usual_home(), is_told, problem
            )

    def _with_token(self, act: Callable[[], bool]) -> None:
        """Off the GUI thread: the hub's library is large, and the hub may be asked."""
        dialog = self.settings

        def show(has_token: bool, problem: str = "") -> None:
            if dialog is not None and self.settings is dialog:
                dialog.token.show_token(has_token, problem)

        self._studio.background.submit(
            "token", act, show, lambda error: show(False, in_window(f"{error.message}; {error.hint}"))
        )

    def choose_setting(
        self,
        *,
        theme: str | None = None,
        engine: str | None = None,
        notifies: bool | None = None,
        numbers: str | None = None,
        keeps_ready: bool | None = None,
    ) -> None:
        """Take over a choice of the settings dialog. That of numbers holds from the next start: texts of runs are made once."""
        if numbers is not None:
            self._studio.settings.change(numbers=numbers)
        if notifies is not None:
            self._studio.settings.change(notifies=notifies)
        if keeps_ready is not None:
            self._studio.settings.change(keeps_ready=keeps_ready)
            self._studio.ready.look()
        if engine is not None:
            self._studio.set_engine(engine)
        if theme is not None:
            self._studio.settings.change(theme=theme)
            self._restyle()

    def _follow_desktop(self) -> None:
        if looks.choose(self._studio.settings.value.theme) != looks.tokens():
            self._restyle()

    def _restyle(self) -> None:
        app = QApplication.instance()
        if isinstance(app, QApplication):
            looks.apply(app, self._studio.settings.value.theme)
            self._tabs.each(lambda tab: tab.restyle())

    def close(self) -> None:
        for found in (self.help, self.settings):
            if found is not None:
                found.close()
