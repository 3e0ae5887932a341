"""The head of the chosen run and the run card beside it: what is true on every tab of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QObject

from app.controllers.capacity import next_verdict
from app.presenters.problems import problems_of
from app.presenters.run_header import RunHeader, draft_header, kept_header, own_header, several_header
from app.presenters.runcard import RunCardState, run_card
from app.presenters.waiting import ends_of
from app.studio import Studio
from app.widgets.run_card import RunCard
from app.widgets.run_header import RunHead
from app.widgets.tab_bar import TabBar


class HeaderController(QObject):
    """`can_start` tells whether Start would begin a run now."""

    def __init__(self, studio: Studio, head: RunHead, card: RunCard, bar: TabBar) -> None:
        super().__init__(head)
        self._studio, self._head, self._card, self._bar = studio, head, card, bar
        self._state: RunHeader | None = None
        self._card_state: RunCardState | None = None
        self._has_room = True
        work, trainer = studio.workspace, studio.trainer
        for signal in (
            work.job.changed, work.base.facts_changed, work.data.changed, work.watch.place.changed, work.watch.changed, work.memory.changed,
            studio.time.changed, trainer.state_changed,
        ):  # fmt: skip
            signal.connect(self.paint)
        for signal in (studio.shown.changed, studio.shown.told, studio.outlook.changed):
            signal.connect(self.paint_head)
        studio.room.changed.connect(self._measure)
        self.paint()

    @property
    def can_start(self) -> bool:
        return self._card_state is not None and self._card_state.can_start

    def when_startable(self, start: Callable[[], object]) -> None:
        """By key: only what the button would do."""
        if self.can_start and self._studio.shown.is_draft:
            start()

    def when_live(self, act: Callable[[], object]) -> None:
        """By key: only of a run that can be paused or stopped."""
        if self._state is not None and self._state.is_live:
            act()

    def fit(self, *, has_room: bool) -> None:
        """`has_room`: the card stands beside the tabs by itself, and need not be opened."""
        self._has_room = has_room
        self._show()

    def paint(self) -> None:
        work = self._studio.workspace
        problems = problems_of(work.job.draft, work.base.facts_error, work.watch.problem)
        self._card_state = run_card(
            work.job.draft, work.base.facts, work.data.report, next_verdict(self._studio), problems,
            self._studio.trainer.is_running, self._studio.time.seconds,
        )  # fmt: skip
        self._card.show_state(self._card_state)
        self.paint_head()

    def paint_head(self) -> None:
        shown, trainer = self._studio.shown, self._studio.trainer
        is_wrong = shown.is_draft and self._card_state is not None and bool(self._card_state.problems)
        self._bar.set_mark("Setup", "needs attention" if is_wrong else "")
        entry = shown.entry
        if len(shown.keys) > 1:
            self._state = several_header(len(shown.keys))
        elif shown.is_draft and self._card_state is not None:
            name = entry.title if entry is not None else self._studio.workspace.job.config.output.name or ""
            ends = ends_of(self._studio.outlook.seen, time.time()).get(shown.key, "")
            self._state = draft_header(
                name, self._card_state, entry.queue_place if entry is not None else None, ends
            )
        elif shown.is_own:
            is_resumable = shown.summary is not None and shown.summary.is_resumable
            self._state = own_header(trainer.run, is_resumable and not trainer.is_running)
        else:
            self._state = kept_header(entry, shown.fold, shown.state)
        self._show()

    def _show(self) -> None:
        if self._state is not None:
            self._head.show_state(
                self._state, is_card_open=not self._card.isHidden(), has_room=self._has_room
            )

    def _measure(self) -> None:
        """More or less memory can be used than was told."""
        own, work = self._studio.room.own, self._studio.workspace
        work.memory.set_usable_gpu_bytes(own.usable_bytes if own and work.job.device == "cuda" else None)
        self.paint()
