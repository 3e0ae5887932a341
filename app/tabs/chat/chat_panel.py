"""Chat: the same question to the base and to any number of tuned models, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QKeyEvent, QShowEvent, QTextCursor
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from app.presenters.conversation import Conversation
from app.presenters.tried import Choice
from app.theme import GAP, GAP_WIDE
from app.widgets.answers import Answer, AnswerColumns, Round, Side
from app.widgets.drawing import DrawingForm
from app.widgets.form import text_box
from app.widgets.kit import (
    Card,
    Elided,
    ElidedButton,
    Notice,
    button,
    column,
    emptied,
    row,
    set_tip,
)
from app.widgets.runs_menu import RunsMenu
from app.widgets.scrolled import Scrolled

SETTINGS_WIDTH, SETTINGS_EDGES = 226, 40


class ChatPanel(QWidget):
    """Signals: `load_asked`, `asked(str)`, `answered(str)` with a tool's result, `interrupt_asked`, `close_asked`, `clear_asked`,
    `keep_asked`, `compared(run_dir, is_wanted)`."""

    load_asked = Signal()
    asked = Signal(str)
    answered = Signal(str)
    interrupt_asked = Signal()
    close_asked = Signal()
    clear_asked = Signal()
    keep_asked = Signal()
    compared = Signal(str, bool)

    def __init__(self) -> None:
        super().__init__()
        self.source = Elided("", "strong")
        self.compare = RunsMenu()
        self.compare.toggled_run.connect(self.compared)
        self.load = button("Load", self.load_asked.emit, "primary")
        self.close_button = button("Unload", self.close_asked.emit, tip="Give the memory back")
        top = row(self.source, self.compare, self.load, self.close_button)
        top.setStretch(0, 1)
        self.notice = Notice()
        self.columns = AnswerColumns()
        self.drawing = DrawingForm()
        main = column(self.columns, self._asking(), gap=12)
        main.setStretch(0, 1)
        self.settings = settings = Card("Settings", margin=12)
        settings.add(Scrolled(self.drawing))
        below = QHBoxLayout()
        below.setSpacing(GAP_WIDE)
        below.addLayout(main, 1)
        below.addWidget(settings)
        outer = column(top, self.notice, below, gap=12)
        outer.setStretch(2, 1)
        self.setLayout(outer)

    def _asking(self) -> QVBoxLayout:
        self.prompt = text_box("Your message")
        self.prompt.setPlaceholderText("Write a message. Enter sends it, Shift+Enter begins a new line.")
        self.prompt.setFixedHeight(68)
        self.prompt.installEventFilter(self)
        self.send = button("Send", self._send, "primary")
        self.result = button(
            "Send as result",
            self._send_result,
            tip="What the called tool gave back; nothing is carried out here",
        )
        self.interrupt = button("Stop answering", self.interrupt_asked.emit)
        self.clear = button("New conversation", self.clear_asked.emit)
        self.keep = button(
            "Keep prompts\u2026", self.keep_asked.emit, tip="Save what was asked as a prompt set"
        )
        self.suggestions = QHBoxLayout()
        self.suggestions.setSpacing(GAP)
        self.status = Elided(role="small")
        sending = QHBoxLayout()
        sending.addWidget(self.prompt, 1)
        sending.addLayout(column(self.send, self.result, self.interrupt, gap=4))
        last = row(self.status, self.keep, self.clear)
        last.setStretch(0, 1)
        return column(self.suggestions, sending, last)

    def set_source(self, title: str) -> None:
        """What is talked to."""
        self.source.setText(title)

    def set_suggestions(self, prompts: Sequence[str]) -> None:
        emptied(self.suggestions)
        for prompt in prompts:
            found = ElidedButton(prompt)
            found.clicked.connect(partial(self._suggest, prompt))
            self.suggestions.addWidget(found)
        self.suggestions.addStretch(1)

    def show_state(
        self, chat: Conversation, choices: Sequence[Choice], *, has_sources: bool, blocked_text: str = ""
    ) -> None:
        self.load.setEnabled(chat.state in ("closed", "failed") and has_sources and not blocked_text)
        set_tip(self.load, blocked_text)
        self.load.setVisible(not chat.is_open)
        self.close_button.setVisible(chat.is_open or chat.state == "loading")
        self.compare.setEnabled(chat.state != "answering")
        self.compare.show_choices(choices, is_base_shown="base" not in chat.hidden)
        self.send.setEnabled(chat.can_ask)
        self.result.setVisible(bool(chat.calling))
        self.result.setEnabled(chat.can_ask)
        self.interrupt.setEnabled(chat.state == "answering")
        self.clear.setEnabled(bool(chat.exchanges) and chat.state != "answering")
        self.keep.setEnabled(bool(chat.exchanges))
        self.drawing.set_scalable(chat.voices.can_scale)
        self.status.setText(chat.status_text)
        self._say(chat, has_sources, blocked_text)
        sides = [Side(side, chat.voices.title(side), chat.voices.detail(side)) for side in chat.shown]
        self.columns.show_rounds(sides, _rounds(chat))

    def _say(self, chat: Conversation, has_sources: bool, blocked_text: str) -> None:
        if chat.error_text:
            self.notice.say(chat.error_text, chat.error_hint, "bad")
        elif not has_sources:
            self.notice.say("There is nothing to talk to yet.", "Choose a model, or a run that has finished.")
        elif chat.state == "closed":
            self.notice.say(blocked_text or "Press Load to bring the model into memory.", "" if blocked_text else "The base model and the tuned ones share the same 4-bit weights.")  # fmt: skip
        else:
            self.notice.say("")

    def showEvent(self, event: QShowEvent) -> None:
        """The settings are as wide as their words, which are known only now."""
        super().showEvent(event)
        self.settings.setFixedWidth(
            max(SETTINGS_WIDTH, self.drawing.minimumSizeHint().width() + SETTINGS_EDGES)
        )

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.prompt and event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
            if is_enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
                self._send()
                return True
        return super().eventFilter(watched, event)

    def _send(self) -> None:
        self._give(self.asked.emit)

    def _send_result(self) -> None:
        self._give(self.answered.emit)

    def _give(self, emit: Callable[[str], object]) -> None:
        text = self.prompt.toPlainText().strip()
        if not text or not self.send.isEnabled():
            return
        if self.drawing.has_good_tools():
            self.prompt.clear()
            emit(text)
        else:
            self.status.setText("The tools in the settings are no JSON.")

    def _suggest(self, prompt: str, *_: object) -> None:
        self.prompt.setPlainText(prompt)
        self.prompt.moveCursor(QTextCursor.MoveOperation.End)  # where one goes on writing
        self.prompt.setFocus()


def _rounds(chat: Conversation) -> list[Round]:
    return [
        Round(
            exchange.prompt,
            {
                side: Answer(text, exchange.notes.get(side, ""), exchange.calls.get(side, ()))
                for side, text in exchange.answers.items()
            },
        )
        for exchange in chat.exchanges
    ]
