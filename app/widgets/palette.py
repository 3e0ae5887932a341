"""A line to type into and below it what can be done: Enter does it, Escape leaves."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QDialog, QLineEdit, QListWidget, QListWidgetItem, QWidget

from app.presenters.palette import Command, found
from app.widgets.kit import column, framed, label

WIDTH, HEIGHT, TOP = 560, 400, 80
MOVES = (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown)


class Palette(QDialog):
    """Signals: `picked(name)`."""

    picked = Signal(str)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self._over = parent
        self._commands: Sequence[Command] = ()
        self.search = QLineEdit()
        self.search.setPlaceholderText("What do you want to do, or which run?")
        self.search.setAccessibleName("What do you want to do")
        self.search.textChanged.connect(self._fill)
        self.search.installEventFilter(self)
        self.list = QListWidget()
        self.list.setAccessibleName("What can be done")
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.itemClicked.connect(self._pick)
        self.none = label("Nothing is called that.", "quiet")
        layout = column(self.search, self.none, self.list, gap=8)
        layout.setContentsMargins(12, 12, 12, 12)
        self.setLayout(column(framed(layout, "over")))

    def ask(self, commands: Sequence[Command]) -> None:
        """Open over the middle of the window."""
        parent = self._over
        self._commands = commands
        self.search.clear()
        self._fill()
        self.resize(min(WIDTH, parent.width() - 40), min(HEIGHT, parent.height() - TOP - 20))
        self.move(parent.mapToGlobal(parent.rect().center()).x() - self.width() // 2, parent.mapToGlobal(parent.rect().topLeft()).y() + TOP)  # fmt: skip
        self.show()
        self.search.setFocus()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            if event.key() in MOVES:
                step = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1, Qt.Key.Key_PageUp: -8}.get(
                    Qt.Key(event.key()), 8
                )
                self.list.setCurrentRow(max(0, min(self.list.count() - 1, self.list.currentRow() + step)))
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._pick(self.list.currentItem())
                return True
        return super().eventFilter(watched, event)

    def _fill(self, *_: object) -> None:
        self.list.clear()
        for command in found(self._commands, self.search.text()):
            more = "   ".join(part for part in (command.hint, command.keys) if part)
            item = QListWidgetItem(f"{command.words}   {more}" if more else command.words)
            item.setData(Qt.ItemDataRole.UserRole, command.name)
            self.list.addItem(item)
        self.none.setVisible(not self.list.count())
        self.list.setCurrentRow(0)

    def _pick(self, item: QListWidgetItem | None) -> None:
        """Once: a second Enter may still come to it after it was hidden, when a desktop is slow to move the keyboard."""
        if item is not None and self.isVisible():
            self.hide()
            self.picked.emit(str(item.data(Qt.ItemDataRole.UserRole)))
