"""A size with its slider, the largest value that fits, and a button that applies it."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QSizePolicy, QSlider, QVBoxLayout, QWidget

from app.presenters.memory_sizes import Size
from app.widgets.kit import Elided, button, label, set_tip


class QuietSlider(QSlider):
    """A slider that a scrolling wheel passes by, so that no setting changes by accident."""

    def __init__(self) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        self.setPageStep(4)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class SizeSlider(QWidget):
    """One setting. Signals: `edited(path, value)` when the person moved the slider or applied the largest."""

    edited = Signal(str, object)

    def __init__(self) -> None:
        super().__init__()
        self._size: Size | None = None
        self._is_painting = False
        self.title, self.value = label(role="small"), Elided(role="strong")
        self.slider = QuietSlider()
        self.slider.valueChanged.connect(self._moved)
        keeps = self.slider.sizePolicy()
        keeps.setRetainSizeWhenHidden(True)
        self.slider.setSizePolicy(keeps)
        self.fits = label(role="small", wraps=True)
        self.use = button("Looking", self._apply)
        self.use.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(4)
        for part in (self.title, self.value, self.slider, self.fits):
            outer.addWidget(part)
        outer.addStretch(1)
        outer.addWidget(self.use)

    def show_size(self, size: Size) -> None:
        """Paint without telling anybody."""
        if size == self._size:
            return
        self._size = size
        self._is_painting = True
        self.title.setText(size.title)
        self.value.setText(size.value_text)
        self.slider.setVisible(bool(size.stops))
        self.slider.setRange(0, max(0, len(size.stops) - 1))
        self.slider.setValue(size.position)
        self.slider.setAccessibleName(f"{size.title}: {size.value_text}")
        self.fits.setText(size.fits_text)
        self.use.setText(size.use_text)
        self.use.setAccessibleName(f"{size.use_text}: {size.fits_text}")
        set_tip(self.use, f"{size.use_text}\n{size.tip}".strip())
        self.use.setEnabled(size.use is not None)
        self._is_painting = False

    def _moved(self, position: int) -> None:
        if not self._is_painting and self._size is not None:
            self._tell(self._size.stops[position])

    def _apply(self) -> None:
        if self._size is not None and self._size.use is not None:
            self._tell(self._size.use)

    def _tell(self, value: Any) -> None:
        if self._size is not None:
            self.edited.emit(self._size.path, value)
