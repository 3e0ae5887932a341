"""A button whose menu holds runs that can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PySide6.QtCore import Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QPushButton

from app.presenters.tried import Choice
from app.widgets.kit import caption, set_tip

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
        self._offered: tuple[Choice, ...] = ()

    @property
    def entries(self) -> dict[str, QAction]:
        """The menu's entries by run; the base is under an empty name."""
        return {str(action.data()): action for action in self._menu.actions() if action.isCheckable()}

    def show_choices(self, choices: Sequence[Choice], *, is_base_shown: bool) -> None:
        """Paint without telling anybody. Entries that stay are kept: one of them may be telling just now."""
        base = Choice(BASE, "Base model", "The same weights without an adapter", True, is_base_shown)
        wanted = (base, *choices)
        offered = tuple(replace(choice, is_chosen=False) for choice in wanted)
        if offered != self._offered:
            self._offered = offered
            self._fill(wanted)
        for choice in wanted:
            self.entries[choice.run_dir].setChecked(choice.is_chosen)
        count = sum(choice.is_chosen for choice in wanted)
        self.setText(f"Compare with ({count})" if count else "Compare with\u2026")

    def _fill(self, choices: Sequence[Choice]) -> None:
        self._menu.clear()
        self._add(choices[0])
        self._menu.addSection("Runs of the same base")
        for choice in choices[1:]:
            self._add(choice)
        if len(choices) == 1:
            self._menu.addAction("No other run yet").setEnabled(False)

    def _add(self, choice: Choice) -> None:
        action = self._menu.addAction(caption(choice.title))
        action.setData(choice.run_dir)
        set_tip(action, choice.tip)
        action.setCheckable(True)
        action.setChecked(choice.is_chosen)
        action.setEnabled(choice.is_possible)
        action.triggered.connect(
            lambda is_checked, name=choice.run_dir: self.toggled_run.emit(name, is_checked)
        )
