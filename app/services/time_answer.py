"""How long the draft's run will take, told from runs of the same model, off the GUI thread."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal

from app.services.background import Background
from app.services.history import History
from app.services.workspace import Workspace
from qlora_engine.runs.pace import Paces

SETTLE_MS = 200
"""A slider that moves is followed when it rests for so long."""


class TimeAnswer(QObject):
    """`seconds` of the whole run; None while nothing comparable has run. Signals: `changed`."""

    changed = Signal()

    def __init__(self, workspace: Workspace, history: History, background: Background) -> None:
        super().__init__()
        self._work, self._history, self._background = workspace, history, background
        self.seconds: float | None = None
        self._soon = QTimer(self, singleShot=True, interval=SETTLE_MS)
        self._soon.timeout.connect(self._look)
        for signal in (workspace.job.changed, workspace.data.changed, history.changed):
            signal.connect(self._soon.start)

    def _look(self) -> None:
        config, entries = self._work.job.config, self._history.entries
        report = self._work.data.report or {}
        rows, tokens = report.get("train_rows"), report.get("train_tokens")
        self._background.submit(
            "time", lambda: Paces(entries).seconds_of(config, rows, tokens), self._take, lambda _: self._take(None)
        )  # fmt: skip

    def _take(self, seconds: float | None) -> None:
        if seconds != self.seconds:
            self.seconds = seconds
            self.changed.emit()
