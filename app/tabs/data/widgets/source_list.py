"""Further datasets that are mixed in, each with how often its rows are seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QGridLayout, QWidget

from app.tabs.data.presenters.source import SourceLine
from app.theme import GAP
from app.widgets.drawing import NumberField
from app.widgets.kit import Elided, button, emptied, label, set_tip

LEAST, MOST = 0.01, 100.0


class SourceList(QWidget):
    """Signals: `weight_chosen(path, weight)`, `remove_asked(path)`."""

    weight_chosen = Signal(str, float)
    remove_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(GAP)
        self._grid.setColumnStretch(0, 1)
        self._shown: tuple[SourceLine, ...] = ()
        self.boxes: dict[str, NumberField] = {}

    def show_sources(self, sources: Sequence[SourceLine]) -> None:
        if tuple(sources) == self._shown:
            return
        self._shown = tuple(sources)
        emptied(self._grid)
        self.boxes = {}
        for place, source in enumerate(sources):
            name = Elided(source.name, mode=Qt.TextElideMode.ElideMiddle)
            set_tip(name, source.path)
            box = NumberField(
                f"How often rows of {source.name} are seen", source.weight, LEAST, MOST, "Times in an epoch"
            )
            box.setMaximumWidth(72)
            box.editingFinished.connect(partial(self._tell, source))
            remove = button("Remove", partial(self.remove_asked.emit, source.path))
            remove.setAccessibleName(f"Remove {source.name}")
            for column, widget in enumerate((name, box, label("\u00d7", "quiet"), remove)):
                self._grid.addWidget(widget, place, column)
            self.boxes[source.path] = box
        self.setVisible(bool(sources))

    def _tell(self, source: SourceLine) -> None:
        weight = self.boxes[source.path].value()
        if weight != source.weight:
            self.weight_chosen.emit(source.path, weight)
