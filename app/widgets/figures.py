"""Large figures, in as many columns as there is room for."""

from __future__ import annotations

from PySide6.QtCore import QSize
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QGridLayout, QWidget

from app.theme import GAP, GAP_WIDE
from app.widgets.kit import column, label, widest_of


class BigNumber(QWidget):
    """A large figure with its name above and a note below."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.value, self.note = label(name, "small"), label("n/a", "number"), label("", "small")
        self.setLayout(column(self.name, self.value, self.note, gap=1))

    def show_value(self, text: str, note: str = "") -> None:
        self.value.setText(text)
        self.note.setText(note)


class Flow(QWidget):
    """Equal parts in as many columns as there is room for: all in one row, else in two, three or more."""

    def __init__(self, *parts: QWidget, gap: int = GAP_WIDE) -> None:
        super().__init__()
        self._parts, self._across = parts, 0
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(gap)
        self._grid.setVerticalSpacing(GAP)
        self._place(len(parts))

    def minimumSizeHint(self) -> QSize:
        return QSize(widest_of(self), super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.fit()

    def fit(self) -> None:
        """Again, when the parts have become wider."""
        gap = self._grid.horizontalSpacing()
        widest = max(part.sizeHint().width() for part in self._parts) + gap
        rows = next(n for n in range(1, len(self._parts) + 1) if -(-len(self._parts) // n) * widest <= self.width() + gap or n == len(self._parts))  # fmt: skip
        self._place(-(-len(self._parts) // rows))

    def _place(self, across: int) -> None:
        if across == self._across:
            return
        self._across = across
        for index, part in enumerate(self._parts):
            self._grid.addWidget(part, index // across, index % across)
        for place in range(len(self._parts)):
            self._grid.setColumnStretch(place, 1 if place < across else 0)
        self.updateGeometry()
