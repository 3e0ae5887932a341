"""The strip at the bottom of every page: memory as a bar with the predicted peak as a tick, and the run."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QMouseEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QSizePolicy, QWidget

from app.presenters.strip import StripState
from app.theme import GAP_WIDE
from app.widgets.kit import Elided, set_tip
from app.widgets.use_bar import UseBar


class Strip(QFrame):
    """Signals: `clicked`."""

    clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "strip")
        self.setMinimumHeight(36)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        set_tip(self, "Open the live charts")
        self.device, self.memory, self.bar = _text(), _text(), UseBar()
        self.paged, self.host, self.host_bar = _text(), _text(), UseBar(80)
        self.sensors, self.run = _text(), _text()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(GAP_WIDE, 3, GAP_WIDE, 3)
        layout.setSpacing(12)
        for item in (self.device, self.memory, self.bar, self.paged, self.host, self.host_bar, self.sensors):
            layout.addWidget(item)
        layout.addStretch(1)
        layout.addWidget(self.run)
        set_tip(self.bar, "Used by everything; the bright part is this run; the tick is the predicted peak")

    def add(self, widget: QWidget) -> None:
        """One more thing at the right end."""
        found = self.layout()
        assert found is not None
        found.addWidget(widget)

    def show_state(self, state: StripState) -> None:
        self.device.setText(state.device_text)
        set_tip(self.device, f"{state.device_text}\n{state.device_tip}".strip())
        self.memory.setText(state.memory_text)
        self.bar.show_use(state.used_share, state.own_share, state.tick_share)
        self.paged.setText(state.paged_text)
        self.paged.setVisible(bool(state.paged_text))
        self.host.setText(state.host_text)
        self.host.setVisible(bool(state.host_text))
        self.host_bar.setVisible(state.host_share is not None)
        self.host_bar.show_use(state.host_share)
        self.sensors.setText(state.sensors_text)
        self.run.setText(state.run_text)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self.clicked.emit()


def _text() -> Elided:
    """As long as there is room for it."""
    return Elided("", "small", policy=QSizePolicy.Policy.Preferred)
