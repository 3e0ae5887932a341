"""The run card: what a draft will do once it is started, and the program's one loud button."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFrame, QLabel, QVBoxLayout, QWidget

from app.presenters.runcard import RunCardState
from app.theme import GAP, GAP_WIDE
from app.widgets.kit import (
    Elided,
    breakable,
    button,
    column,
    emptied,
    label,
    line,
    set_role,
    set_tip,
)
from app.widgets.scrolled import Scrolled

WIDTH = 264


class RunCard(QFrame):
    """Signals: `start_asked`, `queue_asked`, `vary_asked`, `problem_chosen(tab, path)`."""

    start_asked = Signal()
    queue_asked = Signal()
    vary_asked = Signal()
    problem_chosen = Signal(str, str)

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "runcard")
        self.setFixedWidth(WIDTH)
        self.headline = label(role="heading", wraps=True)
        self.facts = QVBoxLayout()
        self.facts.setSpacing(10)
        self.problems = QVBoxLayout()
        self.problems.setSpacing(6)
        self.status = label(role="quiet", wraps=True)
        self.start = button("Start training", self.start_asked.emit, "loud")
        self.queue = button(
            "Put into the queue",
            self.queue_asked.emit,
            tip="It starts by itself when the device is free, also without this window",
        )
        self.vary = button(
            "Try several values\u2026",
            self.vary_asked.emit,
            "link",
            "Runs over lists of values of one or two settings, compared with each other",
        )
        outer = QVBoxLayout(self)
        outer.setContentsMargins(GAP_WIDE, GAP_WIDE, GAP_WIDE, GAP_WIDE)
        outer.setSpacing(GAP)
        outer.addWidget(label("This run", "small"))
        outer.addWidget(self.headline)
        outer.addWidget(line())
        outer.addWidget(self._facts_area(), 1)
        outer.addWidget(self.status)
        outer.addWidget(self.start)
        outer.addWidget(self.queue)
        outer.addWidget(self.vary)
        self._facts: tuple[tuple[str, ...], ...] = ()
        self._cells: list[tuple[QWidget, QLabel, Elided]] = []
        self._problems: object = ()

    def _facts_area(self) -> QWidget:
        """What does not fit is scrolled; the buttons below stay."""
        inner = QWidget()
        inner.setLayout(column(self.problems, self.facts, None, gap=GAP_WIDE))
        area = Scrolled(inner)
        inner.setStyleSheet("background: transparent")
        area.viewport().setStyleSheet("background: transparent")
        area.setStyleSheet("QScrollArea { background: transparent }")
        return area

    def show_state(self, state: RunCardState) -> None:
        self.headline.setText(state.headline)
        set_role(self.headline, tone=state.tone)
        if state.rows != self._facts:
            self._facts = state.rows
            self._show_facts()
        if state.problems != self._problems:
            self._problems = state.problems
            self._show_problems(state)
        self.start.setEnabled(state.can_start)
        self.start.setText(state.start_text)
        self.queue.setEnabled(not state.problems)
        self.vary.setEnabled(not state.problems)
        self.status.setText(state.note)
        self.status.setVisible(bool(state.note))

    def _show_facts(self) -> None:
        while len(self._cells) < len(self._facts):
            name, value = label(role="small"), Elided()
            holder = QWidget()
            holder.setLayout(column(name, value, gap=0))
            self.facts.addWidget(holder)
            self._cells.append((holder, name, value))
        for index, (holder, name, value) in enumerate(self._cells):
            holder.setVisible(index < len(self._facts))
            if index < len(self._facts):
                found = self._facts[index]
                name.setText(found[0])
                if value.text() != found[1]:
                    value.setText(found[1])
                set_tip(value, found[2] if len(found) > 2 else found[1])

    def _show_problems(self, state: RunCardState) -> None:
        emptied(self.problems)
        for problem in state.problems:
            text = label(breakable(f"\u2022 {problem.text}"), wraps=True, tone="warning")
            go = button(f"Go to {problem.page_title}", None, "link")
            go.clicked.connect(partial(self._go, problem.page, problem.path))
            holder = QWidget()
            holder.setLayout(column(text, go, gap=0))
            self.problems.addWidget(holder)

    def _go(self, page: str, path: str, *_: object) -> None:
        self.problem_chosen.emit(page, path)
