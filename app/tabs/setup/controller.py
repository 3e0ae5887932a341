"""Setup of a run that was started: read from its folder, off the GUI thread."""

from __future__ import annotations

from app.presenters.run_setup import setup_tables
from app.presenters.words import capital
from app.studio import Studio
from app.tab import TabController, Ways
from app.tabs.setup.screen import SetupScreen
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.runs.record import RunFolder


class SetupController(TabController):
    def __init__(self, studio: Studio, screen: SetupScreen, ways: Ways) -> None:
        self._studio, self._screen, self._ways = studio, screen, ways
        self._read: object = None
        self._config: TrainingConfig | None = None
        studio.shown.changed.connect(self._look)
        screen.reuse_asked.connect(self._reuse)
        self._look()

    def entered(self, detail: str = "") -> None:
        self._look()

    def _look(self) -> None:
        path = self._studio.shown.path
        if path == self._read or not (self._screen.isVisible() or self._read is None):
            return
        self._read = path
        self._config = None
        self._screen.notice.say("")
        self._screen.show_tables(())
        if path is not None:
            self._studio.background.submit("setup", RunFolder(path).job, self._take, self._refuse)

    def _take(self, config: TrainingConfig) -> None:
        self._config = config
        self._screen.notice.say("")
        self._screen.show_tables(setup_tables(config))

    def _refuse(self, error: EngineError) -> None:
        self._config = None
        self._screen.show_tables(())
        self._screen.notice.say(f"{capital(error.message)}.", capital(error.hint), "bad")

    def _reuse(self) -> None:
        if self._config is not None:
            self._ways.draft_from(self._config)
