"""Try it page: one chat session at a time, in an engine of its own."""

from __future__ import annotations

import json

from PySide6.QtCore import QObject, QTimer

from app.presenters.conversation import Conversation
from app.presenters.runs import run_title, usable_runs
from app.screens.tryit import TryScreen
from app.studio import Studio
from qlora_engine import paths
from qlora_engine.events import Event
from qlora_engine.jobs import ChatJob

REPAINT_MS = 60


class TryController(QObject):
    def __init__(self, studio: Studio, screen: TryScreen) -> None:
        super().__init__(screen)
        self._studio, self._screen = studio, screen
        self._job = studio.jobs["chat"]
        self.chat = Conversation()
        self._source = ""
        self._painted = -1
        self._timer = QTimer(self, interval=REPAINT_MS)
        self._timer.timeout.connect(self._repaint)
        self._job.event_arrived.connect(self._take)
        self._job.ended.connect(self._end)
        studio.history.changed.connect(self._sources_changed)
        studio.trainer.state_changed.connect(self.paint)
        screen.source_chosen.connect(self._choose)
        screen.load_asked.connect(self.load)
        screen.asked.connect(self._ask)
        screen.interrupt_asked.connect(lambda: self._job.send({"command": "interrupt"}))
        screen.close_asked.connect(self._job.stop)
        screen.clear_asked.connect(self._clear)
        screen.set_suggestions(_suggestions())
        self._sources_changed()

    def choose_run(self, run_dir: str) -> None:
        """Another page wants this run to be tried."""
        if self._job.is_running and run_dir != self._source:
            self._job.stop()
        self._source = run_dir
        self._sources_changed()

    def load(self) -> None:
        if not self._source or self._job.is_running:
            return
        self.chat.begin()
        self._timer.start()
        self._job.start(ChatJob(self._source))
        self.paint()

    def paint(self) -> None:
        blocked = (
            "A run is training now; chatting would slow both. Stop it or wait." if self._is_blocked() else ""
        )
        self._screen.show_state(self.chat, has_sources=bool(self._source), blocked_text=blocked)

    def _is_blocked(self) -> bool:
        return self._studio.trainer.is_running and self._studio.trainer.run.state != "paused"

    def _sources_changed(self) -> None:
        runs = [(str(s.path), run_title(s)) for s in usable_runs(self._studio.history.summaries)]
        model = self._studio.workspace.config.model.name
        sources = [*runs, (model, f"{model} (untouched model)")]
        known = [value for value, _ in sources]
        if self._source not in known:
            self._source = known[0]
        self._screen.set_sources(sources, self._source)
        self.paint()

    def _choose(self, source: str) -> None:
        self._source = source
        self.paint()

    def _ask(self, text: str) -> None:
        request = self.chat.ask(text, self.chat.sides)
        system = self._screen.system_prompt()
        # Each side remembers what it said itself, so each is asked with its own history.
        for side in self.chat.sides:
            self._job.send(
                {
                    "command": "ask", "request": request, "messages": self.chat.messages(side, system),
                    "sides": [side], "settings": self._screen.generation_settings(),
                }
            )  # fmt: skip
        self.paint()

    def _clear(self) -> None:
        self.chat.clear()
        self.paint()

    def _take(self, event: Event) -> None:
        self.chat.fold(event)

    def _repaint(self) -> None:
        if self._painted != self.chat.version:
            self._painted = self.chat.version
            self.paint()

    def _end(self) -> None:
        self._timer.stop()
        self.paint()


def _suggestions() -> list[str]:
    stored = json.loads((paths.resources_dir() / "starter" / "prompts.json").read_text(encoding="utf-8"))
    return list(stored["prompts"])[:2]
