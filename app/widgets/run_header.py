"""The head of the chosen run: name, where it stands, Pause, Stop and what is to be done next."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QMenu, QPushButton

from app.presenters.run_header import START, RunHeader
from app.theme import GAP, GAP_PAGE
from app.widgets.kit import Elided, ElidedButton, button, column, set_role, set_tip
from app.widgets.share_bar import ShareBar


class RunHead(QFrame):
    """Signals: `act_asked(action)` of the primary button, `pause_asked`, `stop_asked`, `card_asked`, and of the menu
    `menu_asked(action)`."""

    act_asked = Signal(str)
    pause_asked = Signal()
    stop_asked = Signal()
    card_asked = Signal()
    menu_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "head")
        self.name, self.sentence = Elided("", "heading"), Elided("", "quiet")
        self.progress = ShareBar("How far the run is")
        self.card = ElidedButton("This run")
        self.card.clicked.connect(lambda *_: self.card_asked.emit())
        self.pause = button("Pause", self.pause_asked.emit)
        self.stop = button("Stop\u2026", self.stop_asked.emit, "danger")
        self.primary = button("Start training", lambda: self.act_asked.emit(self._action), "primary")
        self.more = QPushButton("\u2026")
        self.more.setProperty("role", "more")
        self.more.setAccessibleName("More about this run")
        set_tip(self.more, "More about this run")
        self._menu = QMenu(self)
        self.more.setMenu(self._menu)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(GAP_PAGE, 10, GAP_PAGE, 6)
        layout.setSpacing(GAP)
        words = column(self.name, self.sentence, self.progress, gap=3)
        layout.addLayout(words, 1)
        for found in (self.card, self.pause, self.stop, self.primary, self.more):
            layout.addWidget(found)
        self._action = ""
        self._offered: tuple[tuple[str, str], ...] = ()

    def show_state(self, state: RunHeader, *, is_card_open: bool, has_room: bool) -> None:
        """`is_card_open`: the run card stands beside it, and its Start is the only one; else `has_room` offers it here."""
        self.name.setText(state.name)
        self.sentence.setText(state.sentence)
        set_role(self.sentence, tone=state.tone)
        is_draft = state.action == START
        self.progress.setVisible(state.is_live or state.share is not None)
        self.progress.show_share(state.share)
        self.card.setVisible(is_draft and not has_room)
        self.card.set_text(state.sentence)
        self.pause.setVisible(state.is_live)
        self.pause.setEnabled(state.can_pause)
        self.pause.setText(state.pause_text)
        self.pause.setAccessibleName(state.pause_text)
        self.stop.setVisible(state.is_live)
        self.stop.setEnabled(state.can_stop)
        self._action = state.action
        self.primary.setVisible(bool(state.action) and not (is_draft and is_card_open))
        self.primary.setEnabled(state.can_act)
        self.primary.setText(state.action_text)
        self.primary.setAccessibleName(state.action_text)

    @property
    def act(self) -> str:
        """What the primary button would do now; empty where it can do nothing."""
        return self._action if self.primary.isEnabled() else ""

    @property
    def offered(self) -> tuple[tuple[str, str], ...]:
        """What the menu has now."""
        return self._offered

    def offer(self, actions: Sequence[tuple[str, str]]) -> None:
        """(action, words) of the menu."""
        if tuple(actions) == self._offered:
            return
        self._offered = tuple(actions)
        self._menu.clear()
        for name, words in actions:
            self._menu.addAction(words).triggered.connect(lambda *_, n=name: self.menu_asked.emit(n))
        self.more.setVisible(bool(actions))
