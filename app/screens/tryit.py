"""Try it page: the same question to the untouched base and to the tuned model, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QCheckBox, QHBoxLayout, QLineEdit, QPlainTextEdit, QSlider, QVBoxLayout, QWidget

from app.presenters.conversation import SIDE_TITLES, SIDES, Conversation
from app.theme import GAP, GAP_WIDE
from app.widgets.form import QuietCombo
from app.widgets.kit import Card, ElidedButton, button, column, emptied, label, row
from app.widgets.page import Page
from app.widgets.transcript import Transcript, Turn

DEFAULT_TOKENS = 128
STRENGTH_STEPS = 20
"""The slider's steps per unit of adapter strength."""


class TryScreen(Page):
    """Signals: `source_chosen(str)`, `load_asked`, `asked(str)`, `interrupt_asked`, `close_asked`, `clear_asked`."""

    source_chosen = Signal(str)
    load_asked = Signal()
    asked = Signal(str)
    interrupt_asked = Signal()
    close_asked = Signal()
    clear_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Try it", "Ask the base model and the tuned one the same question", scrolls=False)
        self.source = QuietCombo()
        self.source.setAccessibleName("What to talk to")
        self.source.setMinimumWidth(300)
        self.source.activated.connect(lambda i: self.source_chosen.emit(self.source.itemData(i)))
        self.load = button("Load", self.load_asked.emit, "primary")
        self.close_button = button("Unload", self.close_asked.emit, tip="Give the memory back")
        self.buttons.addLayout(row(self.source, self.load, self.close_button))
        self.views = {side: Transcript(SIDE_TITLES[side]) for side in SIDES}
        self.cards = {side: Card(SIDE_TITLES[side]).add(view) for side, view in self.views.items()}
        both = QHBoxLayout()
        both.setSpacing(GAP_WIDE)
        for card in self.cards.values():
            both.addWidget(card, 1)
        self.prompt = QPlainTextEdit()
        self.prompt.setAccessibleName("Your message")
        self.prompt.setPlaceholderText("Write a message. Enter sends it, Shift+Enter begins a new line.")
        self.prompt.setFixedHeight(68)
        self.prompt.installEventFilter(self)
        self.send = button("Send", self._send, "primary")
        self.interrupt = button("Stop answering", self.interrupt_asked.emit)
        self.clear = button("New conversation", self.clear_asked.emit)
        self.suggestions = QHBoxLayout()
        self.suggestions.setSpacing(GAP)
        self.status = label(role="small")
        self._build_settings()
        bottom = QVBoxLayout()
        bottom.setSpacing(GAP)
        bottom.addLayout(self.suggestions)
        sending = QHBoxLayout()
        sending.addWidget(self.prompt, 1)
        sending.addLayout(column(self.send, self.interrupt, gap=4))
        bottom.addLayout(sending)
        bottom.addLayout(row(self.status, None, self.clear))
        side = Card("Settings", margin=12)
        side.add(self.settings)
        side.body.addStretch(1)
        side.setFixedWidth(232)
        main = QVBoxLayout()
        main.setSpacing(12)
        main.addLayout(both, 1)
        main.addLayout(bottom)
        whole = QHBoxLayout()
        whole.setSpacing(GAP_WIDE)
        whole.addLayout(main, 1)
        whole.addWidget(side)
        self.content.addLayout(whole, 1)

    def _build_settings(self) -> None:
        self.tokens = QLineEdit(str(DEFAULT_TOKENS))
        self.tokens.setAccessibleName("Longest answer in tokens")
        self.sampling = QCheckBox("Sample (else greedy)")
        self.sampling.setToolTip("Greedy gives the same answer every time")
        self.temperature = QLineEdit("0.7")
        self.temperature.setAccessibleName("Temperature")
        self.system = QPlainTextEdit()
        self.system.setAccessibleName("System prompt")
        self.system.setFixedHeight(64)
        self.strength = QSlider(Qt.Orientation.Horizontal)
        self.strength.setAccessibleName("Adapter strength")
        self.strength.setRange(0, 2 * STRENGTH_STEPS)
        self.strength.setValue(STRENGTH_STEPS)
        self.strength_text = label("1.00 (as trained)", "small")
        self.strength.valueChanged.connect(self._show_strength)
        self.settings = QWidget()
        self.settings.setLayout(
            column(
                label("Longest answer, tokens", "small"), self.tokens, self.sampling,
                label("Temperature", "small"), self.temperature, label("System prompt", "small"), self.system,
                label("Adapter strength", "small"), self.strength, self.strength_text, gap=6,
            )
        )  # fmt: skip

    def set_sources(self, sources: Sequence[tuple[str, str]], chosen: str) -> None:
        """(path or name, title) of what can be talked to."""
        self.source.clear()
        for value, title in sources:
            self.source.addItem(title, value)
        index = self.source.findData(chosen)
        self.source.setCurrentIndex(max(0, index))

    def set_suggestions(self, prompts: Sequence[str]) -> None:
        emptied(self.suggestions)
        for prompt in prompts:
            found = ElidedButton(prompt)
            found.clicked.connect(partial(self._suggest, prompt))
            self.suggestions.addWidget(found)
        self.suggestions.addStretch(1)

    def show_state(self, chat: Conversation, *, has_sources: bool, blocked_text: str = "") -> None:
        is_open = chat.state in ("ready", "answering")
        self.load.setEnabled(chat.state in ("closed", "failed") and has_sources and not blocked_text)
        self.load.setToolTip(blocked_text)
        self.load.setVisible(not is_open)
        self.close_button.setVisible(is_open or chat.state == "loading")
        self.source.setEnabled(chat.state in ("closed", "failed"))
        self.send.setEnabled(chat.can_ask)
        self.interrupt.setEnabled(chat.state == "answering")
        self.clear.setEnabled(bool(chat.exchanges) and chat.state != "answering")
        can_scale = bool(chat.facts.get("can_scale_adapter", True))
        self.strength.setEnabled(can_scale)
        self.strength.setToolTip("" if can_scale else "A DoRA adapter, or none, has no strength to turn")
        self.status.setText(chat.status_text)
        if chat.error_text:
            self.notice.say(chat.error_text, chat.error_hint, "bad")
        elif not has_sources:
            self.notice.say("There is nothing trained yet.", "Train a model first; then ask it here. The base model can be tried now.")  # fmt: skip
        elif chat.state == "closed":
            self.notice.say(blocked_text or "Press Load to bring the model into memory.", "" if blocked_text else "The base model and the tuned one share the same 4-bit weights.")  # fmt: skip
        else:
            self.notice.say("")
        for side, view in self.views.items():
            self.cards[side].setVisible(side in chat.sides)
            view.show_turns(_turns(chat, side))

    def generation_settings(self) -> dict[str, object]:
        """What the fields say; a field that cannot be read keeps its default."""
        found: dict[str, object] = {"do_sample": self.sampling.isChecked()}
        found["max_new_tokens"] = _read(self.tokens, int, DEFAULT_TOKENS)
        if self.sampling.isChecked():
            found["temperature"] = _read(self.temperature, float, 0.7)
        strength = self.strength.value() / STRENGTH_STEPS
        if strength != 1.0 and self.strength.isEnabled():
            found["adapter_strength"] = strength
        return found

    def system_prompt(self) -> str:
        return self.system.toPlainText().strip()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.prompt and event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
            if is_enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
                self._send()
                return True
        return super().eventFilter(watched, event)

    def _send(self) -> None:
        text = self.prompt.toPlainText().strip()
        if text and self.send.isEnabled():
            self.prompt.clear()
            self.asked.emit(text)

    def _suggest(self, prompt: str, *_: object) -> None:
        self.prompt.setPlainText(prompt)
        self.prompt.setFocus()

    def _show_strength(self, value: int) -> None:
        strength = value / STRENGTH_STEPS
        words = {0.0: " (off: the base)", 1.0: " (as trained)"}.get(strength, "")
        self.strength_text.setText(f"{strength:.2f}{words}")


def _turns(chat: Conversation, side: str) -> list[Turn]:
    found = []
    for exchange in chat.exchanges:
        if side in exchange.answers:
            found.append(Turn("You", exchange.prompt, True))
            found.append(Turn(SIDE_TITLES[side], exchange.answers[side], False, exchange.notes.get(side, "")))
    return found


def _read(field: QLineEdit, kind: type, default: float) -> float:
    try:
        return kind(field.text().strip())
    except ValueError:
        field.setText(str(default))
        return default
