"""A button whose menu holds runs that can be checked."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QPushButton

from app.presenters.tried import Choice

BASE = ""
"""What `toggled` names the base by."""


class RunsMenu(QPushButton):
    """Signals: `toggled_run(run_dir, is_checked)`, only by the person; the base has an empty `run_dir`."""

    toggled_run = Signal(str, bool)

    def __init__(self) -> None:
        super().__init__("Compare with\u2026")
        self.setAccessibleName("Compare with")
        self._menu = QMenu(self)
        self._menu.setToolTipsVisible(True)
        self.setMenu(self._menu)
        self._shown: object = None

    @property
    def entries(self) -> dict[str, QAction]:
        """The menu's entries by run; the base is under an empty name."""
        return {str(action.data()): action for action in self._menu.actions() if action.isCheckable()}

    def show_choices(self, choices: Sequence[Choice], *, is_base_shown: bool) -> None:
        """Paint without telling anybody."""
        state = (tuple(choices), is_base_shown)
        if state == self._shown:
            return
        self._shown = state
        self._menu.clear()
        self._add(Choice(BASE, "Base model", "The same weights without an adapter", True, is_base_shown))
        self._menu.addSection("Runs of the same base")
        for choice in choices:
            self._add(choice)
        if not choices:
            self._menu.addAction("No other run yet").setEnabled(False)
        count = sum(choice.is_chosen for choice in choices) + is_base_shown
        self.setText(f"Compare with ({count})" if count else "Compare with\u2026")

    def _add(self, choice: Choice) -> None:
        action = self._menu.addAction(choice.title)
        action.setData(choice.run_dir)
        action.setToolTip(choice.tip)
        action.setCheckable(True)
        action.setChecked(choice.is_chosen)
        action.setEnabled(choice.is_possible)
        action.triggered.connect(lambda is_checked, name=choice.run_dir: self._tell(name, is_checked))

    def _tell(self, run_dir: str, is_checked: bool) -> None:
        self._shown = None
        self.toggled_run.emit(run_dir, is_checked)
