"""Try it page: one controller for each tab; at most one model is in memory for all of them."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.controllers.try_chat import ChatController
from app.controllers.try_held_out import HeldOutController
from app.controllers.try_sets import SetsController
from app.controllers.try_timeline import TimelineController
from app.presenters.runs import usable_runs
from app.presenters.tried import bases_of
from app.screens.tryit import CHAT, SETS, TryScreen
from app.studio import Studio


class TryController(QObject):
    def __init__(self, studio: Studio, screen: TryScreen) -> None:
        super().__init__(screen)
        self._studio, self._screen = studio, screen
        self.chats = ChatController(studio, screen.chat)
        self.sets = SetsController(studio, screen.sets, screen.chat.drawing.settings)
        self.held_out = HeldOutController(studio, screen.held_out)
        self.timeline = TimelineController(studio, screen.timeline)
        self._parts = (self.chats, self.sets, self.held_out, self.timeline)
        screen.chat.drawing.changed.connect(self.sets.settings_changed)
        screen.chat.keep_asked.connect(self._keep_prompts)
        studio.history.changed.connect(self._runs_changed)
        studio.trainer.state_changed.connect(self.paint)
        studio.tryout.changed.connect(self.paint)
        self._runs_changed()

    @property
    def chat(self) -> object:
        """The conversation."""
        return self.chats.chat

    def choose_run(self, run_dir: str) -> None:
        """Another page wants this run to be tried."""
        self._screen.show_tab(CHAT)
        self.chats.choose_run(run_dir)
        self.held_out.choose(run_dir)
        self.timeline.choose(run_dir)

    def load(self) -> None:
        self.chats.load()

    def paint(self) -> None:
        for part in self._parts:
            part.paint()

    def restyle(self) -> None:
        """After a change of theme: rich text takes the new colours."""
        self._screen.chat.columns.restyle()
        self._screen.held_out.repaint_rows()

    def _runs_changed(self) -> None:
        """The base of each run is read from its record, off the GUI thread."""
        runs = usable_runs(self._studio.history.summaries)
        self._studio.background.submit("bases", lambda: bases_of(runs), self.chats.take_bases)
        for part in self._parts:
            part.runs_changed()

    def _keep_prompts(self) -> None:
        if self.sets.library.write_new(self.chats.chat.prompts):
            self._screen.show_tab(SETS)
