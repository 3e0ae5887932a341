"""Chat: one controller for each panel; at most one model is in memory for all that try a result."""

from __future__ import annotations

from app.presenters.runs import usable_runs
from app.presenters.tried import bases_of
from app.studio import Studio
from app.tab import TabController
from app.tabs.chat.chat import ChatController
from app.tabs.chat.screen import SETS, ChatScreen
from app.tabs.chat.sets import SetsController


class ChatTabController(TabController):
    """`entered("load")` brings the chosen run into memory at once."""

    def __init__(self, studio: Studio, screen: ChatScreen) -> None:
        self._studio, self._screen = studio, screen
        self.chats = ChatController(studio, screen.chat)
        self.sets = SetsController(studio, screen.sets, screen.chat.drawing.settings)
        screen.chat.drawing.changed.connect(self.sets.settings_changed)
        screen.chat.keep_asked.connect(self._keep_prompts)
        studio.history.changed.connect(self._runs_changed)
        studio.shown.changed.connect(self._follow)
        studio.workspace.job.changed.connect(self._follow)
        studio.trainer.state_changed.connect(self.paint)
        studio.tryout.changed.connect(self.paint)
        self._runs_changed()

    @property
    def chat(self) -> object:
        """The conversation."""
        return self.chats.chat

    def entered(self, detail: str = "") -> None:
        self.chats.follow()
        if len(self._studio.shown.keys) > 1:
            self.sets.choose(self._studio.shown.keys)
            self._screen.show_tab(SETS)
        if detail == "load":
            self._screen.show_tab("chat")
            self.chats.load()

    def restyle(self) -> None:
        self._screen.chat.columns.restyle()

    def paint(self) -> None:
        self.chats.paint()
        self.sets.paint()

    def _follow(self) -> None:
        """A conversation goes on while other runs are only looked at: it ends when the tab is seen with another."""
        if self._screen.isVisible() or not self.chats.chat.is_open:
            self.chats.follow()

    def _runs_changed(self) -> None:
        """The base of each run is read from its record, off the GUI thread."""
        runs = usable_runs(self._studio.history.summaries)
        self._studio.background.submit("bases", lambda: bases_of(runs), self.chats.take_bases)
        self._follow()
        self.sets.runs_changed()

    def _keep_prompts(self) -> None:
        if self.sets.library.write_new(self.chats.chat.prompts):
            self._screen.show_tab(SETS)
