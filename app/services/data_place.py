"""Whether the chosen data are where the job says, looked at off the GUI thread: a network folder may answer late."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

from app.services.background import Background
from qlora_engine.config import DataSettings
from qlora_engine.data.sources import missing
from qlora_engine.errors import EngineError


class DataPlace(QObject):
    """`problem` is what is missing, None while nothing is. Signals: `changed`."""

    changed = Signal()

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background
        self.problem: EngineError | None = None

    def look(self, settings: DataSettings) -> None:
        self._background.submit("data place", lambda: missing(settings), self._take)

    def _take(self, problem: EngineError | None) -> None:
        if str(problem) != str(self.problem):
            self.problem = problem
            self.changed.emit()
