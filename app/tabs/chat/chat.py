"""Chat: one session at a time; runs are put beside the first and taken off while it is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from PySide6.QtCore import QObject, QTimer

from app.controllers.blocked import blocked_text
from app.presenters.conversation import BASE, Conversation, messages_of
from app.presenters.runs import run_title, usable_runs
from app.presenters.tried import Choice, choices
from app.studio import Studio
from app.tabs.chat.chat_panel import ChatPanel
from qlora_engine import parsing, paths
from qlora_engine.evaluate.origin import BaseKey
from qlora_engine.events import TERMINAL, Event, SessionReady, SidesChanged
from qlora_engine.jobs import ChatJob

REPAINT_MS = 60
OWNER = "chat"


class ChatController(QObject):
    def __init__(self, studio: Studio, panel: ChatPanel) -> None:
        super().__init__(panel)
        self._studio, self._panel = studio, panel
        self.chat = Conversation()
        self._source = ""
        """A run's folder, or the name of a model that nothing was trained on yet."""
        self._wanted: frozenset[str] = frozenset()
        self._changes: deque[str] = deque()
        """Runs that the engine was asked to put on or take off, in the order in which it will answer."""
        self._bases: Mapping[str, BaseKey | None] = {}
        self._painted = -1
        self._timer = QTimer(self, interval=REPAINT_MS)
        self._timer.timeout.connect(self._repaint)
        studio.tryout.event_arrived.connect(self._take)
        panel.load_asked.connect(self.load)
        panel.asked.connect(self._ask)
        panel.answered.connect(self._answer)
        panel.interrupt_asked.connect(lambda: studio.tryout.send(OWNER, {"command": "interrupt"}))
        panel.close_asked.connect(lambda: studio.tryout.stop(OWNER))
        panel.clear_asked.connect(self._clear)
        panel.compared.connect(self._compare)
        panel.set_suggestions(_suggestions())

    def follow(self) -> None:
        """Talk to the chosen run, or to the untouched model where there is no adapter; a session with another ends."""
        shown = self._studio.shown
        summary = shown.summary
        is_usable = summary is not None and summary.has_adapter
        model = self._studio.workspace.job.config.model.name if summary is None else summary.model
        source = str(shown.path) if is_usable else model
        if source != self._source:
            if self._studio.tryout.owner == OWNER:
                self._studio.tryout.stop(OWNER)
            self._source = source
            self._wanted = frozenset()
        self._panel.set_source(run_title(summary) if is_usable and summary else f"{model} (untouched model)")
        self.paint()

    def load(self) -> None:
        if not self._source or self._studio.tryout.owner == OWNER or blocked_text(self._studio):
            return
        self.chat.begin()
        self._timer.start()
        self._studio.tryout.start(OWNER, ChatJob(self._source))
        self.paint()

    def paint(self) -> None:
        self._panel.show_state(
            self.chat,
            self._choices(),
            has_sources=bool(self._source),
            blocked_text=blocked_text(self._studio),
        )

    def take_bases(self, found: Mapping[str, BaseKey | None]) -> None:
        self._bases = found
        self.paint()

    def _choices(self) -> tuple[Choice, ...]:
        runs = usable_runs(self._studio.history.summaries)
        return choices(runs, self._bases, self._source, self._wanted)

    def _compare(self, run_dir: str, is_wanted: bool) -> None:
        """The base is only hidden; a run is put on the loaded base, or taken off it."""
        if not run_dir:
            self.chat.hide(BASE, not is_wanted)
        else:
            self._wanted = self._wanted | {run_dir} if is_wanted else self._wanted - {run_dir}
            if self.chat.is_open:
                self._change(run_dir, is_wanted)
        self.paint()

    def _change(self, run_dir: str, is_wanted: bool) -> None:
        side = self.chat.voices.side_of(run_dir)
        if is_wanted and side is None:
            self.chat.status_text = f"Adding {Path(run_dir).name}"
            self._changes.append(run_dir)
            self._studio.tryout.send(OWNER, {"command": "add_adapter", "run_dir": run_dir})
        elif side is not None and not is_wanted:
            self._changes.append(run_dir)
            self._studio.tryout.send(OWNER, {"command": "remove_adapter", "side": side})

    def _answer(self, text: str) -> None:
        """What a called tool gave back, to the sides that called one."""
        sides = self.chat.calling
        results = self.chat.with_result(text)
        if results:
            self._send(self.chat.ask(text, sides, results), sides)
        self.paint()

    def _ask(self, text: str) -> None:
        sides = self.chat.shown
        self._send(self.chat.ask(text, sides), sides)
        self.paint()

    def _send(self, request: int, sides: tuple[str, ...]) -> None:
        drawing = self._panel.drawing
        system, strength = drawing.system_prompt(), drawing.strength_value()
        # Each side remembers what it said itself, so each is asked with its own history.
        for side in sides:
            scaled = (
                {"adapter_strength": strength} if strength != 1.0 and self.chat.voices.scales(side) else {}
            )
            self._studio.tryout.send(
                OWNER,
                {
                    "command": "ask", "request": request, "messages": messages_of(self.chat.exchanges, side, system),
                    "sides": [side], "settings": {**drawing.settings(), **scaled}, "tools": drawing.tools(),
                },
            )  # fmt: skip

    def _clear(self) -> None:
        self.chat.clear()
        self.paint()

    def _take(self, owner: str, event: Event) -> None:
        if owner != OWNER:
            return
        self.chat.fold(event)
        if isinstance(event, SessionReady):
            possible = {choice.run_dir for choice in self._choices() if choice.is_chosen}
            self._changes.clear()
            for run_dir in sorted(possible):
                self._change(run_dir, True)
        elif isinstance(event, SidesChanged) and self._changes:
            run_dir = self._changes.popleft()
            if (
                self.chat.voices.side_of(run_dir) is None
            ):  # taken off, or refused with the reason in the status
                self._wanted -= {run_dir}
        if isinstance(event, TERMINAL):
            self._timer.stop()
            self.paint()

    def _repaint(self) -> None:
        if self._painted != self.chat.version:
            self._painted = self.chat.version
            self.paint()


def _suggestions() -> list[str]:
    stored = parsing.from_json(
        (paths.resources_dir() / "starter" / "prompts.json").read_text(encoding="utf-8")
    )
    return list(stored["prompts"])[:2]
