"""Everything that can be done by the keyboard: shortcuts, and the palette that finds the rest by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QObject
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QWidget

from app.frame.tabs import RunTabs
from app.presenters.palette import Command
from app.presenters.run_header import START
from app.studio import Studio
from app.tab import DRAFT
from app.widgets.palette import Palette
from app.widgets.run_header import RunHead
from app.widgets.run_list import RunList

RUN = "run "


class Commands(QObject):
    """`acts`: (words, keys, what it does) of the window's own actions."""

    def __init__(
        self,
        window: QWidget,
        studio: Studio,
        tabs: RunTabs,
        head: RunHead,
        runs: RunList,
        acts: tuple[tuple[str, str, Callable[[], object]], ...],
    ) -> None:
        super().__init__(window)
        self._studio, self._tabs, self._head, self._runs = studio, tabs, head, runs
        self.palette = Palette(window)
        self.palette.picked.connect(self._do)
        self._acts = {words: (keys, act) for words, keys, act in acts}
        for _, keys, act in acts:
            if keys:
                QShortcut(QKeySequence(keys), window).activated.connect(act)
        for number in range(9):
            QShortcut(QKeySequence(f"Ctrl+{number + 1}"), window).activated.connect(
                partial(tabs.show_number, number)
            )
        for keys, act in (("Ctrl+K", self.ask), ("Ctrl+F", self._search), ("Ctrl+L", runs.view.setFocus)):
            QShortcut(QKeySequence(keys), window).activated.connect(act)

    def ask(self) -> None:
        self.palette.ask(self.offered())

    def offered(self) -> list[Command]:
        """The window's actions, the chosen run's, its tabs, then every run."""
        own = [Command(words, words, "", keys) for words, (keys, _) in self._acts.items()]
        head = self._head
        can_act = head.act not in ("", START)  # Start is among the window's own
        act = [Command(f"act {head.act}", head.primary.text(), head.name.text())] if can_act else []
        menu = [Command(f"menu {name}", words, head.name.text()) for name, words in head.offered]
        drafts = [tab.name for tab in self._tabs.tabs.values() if DRAFT in tab.of]
        tabs = [
            Command(f"tab {tab.name}", f"{tab.group}: {tab.title}" if tab.group else tab.title, "", f"Ctrl+{drafts.index(tab.name) + 1}" if tab.name in drafts else "")
            for tab in self._tabs.tabs.values() if self._tabs.kind in tab.of
        ]  # fmt: skip
        runs = [Command(RUN + row.key, row.name, row.state_text) for row in self._runs.model.rows]
        return [*own, *act, *menu, *tabs, *runs]

    def _do(self, name: str) -> None:
        if name in self._acts:
            self._acts[name][1]()
        elif name.startswith("act "):
            self._head.act_asked.emit(name.removeprefix("act "))
        elif name.startswith("menu "):
            self._head.menu_asked.emit(name.removeprefix("menu "))
        elif name.startswith("tab "):
            self._tabs.show(name.removeprefix("tab "))
        else:
            self._runs.chosen.emit((name.removeprefix(RUN),))

    def _search(self) -> None:
        """The list's search; where only signs are left of it, the palette."""
        if self._runs.search.isVisible():
            self._runs.search.setFocus()
        else:
            self.ask()
