"""Memory page: this machine, or any GPU of the table."""

from __future__ import annotations

import time

from PySide6.QtCore import QTimer

from app.controllers.capacity import what_if_capacity
from app.controllers.options import option_values
from app.presenters.memory import memory_state
from app.presenters.memory_sizes import Fitting, Subject, fitting
from app.presenters.memory_words import Capacity, RehearsalStatus, mark_of
from app.studio import Studio
from app.tab import TabController
from app.tabs.memory.screen import MemoryScreen
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory.context import context_of
from qlora_engine.memory.variants import side_of

SEARCH_DELAY_MS = 120
"""How long nothing must move before the largest that fits is looked for."""
TICK_MS = 1000


class MemoryController(TabController):
    def __init__(self, studio: Studio, screen: MemoryScreen) -> None:
        self._studio, self._screen = studio, screen
        self._fitting: Fitting | None = None
        self._is_seen = self._is_stale = False
        self._search = QTimer(screen, singleShot=True, interval=SEARCH_DELAY_MS)
        self._search.timeout.connect(self._look_for_largest)
        self._tick = QTimer(screen, interval=TICK_MS)
        self._tick.timeout.connect(self._paint_mark)
        work = studio.workspace
        work.memory.changed.connect(self.paint)
        studio.room.changed.connect(self.paint)
        work.job.changed.connect(self.paint_options)
        studio.rehearser.changed.connect(self._paint_mark)
        studio.history.changed.connect(self.paint)
        screen.edited.connect(work.job.edit)
        screen.reset_asked.connect(work.job.reset_option)
        screen.gpu_chosen.connect(lambda name: work.memory.choose_gpu(name or None))
        screen.seen.connect(self._seen)
        self.paint()
        self.paint_options()

    def restyle(self) -> None:
        self.paint()

    def paint(self) -> None:
        """Everything but the largest that fits, which is looked for as soon as nothing moves; later, where nobody looks."""
        if not self._is_seen:
            self._is_stale = True
            return
        self._is_stale = False
        self._paint_now()
        self._search.start()

    def _paint_now(self) -> None:
        work = self._studio.workspace
        self._screen.show_state(
            memory_state(
                work.memory.shown, self._capacity, is_double=work.job.config.quantization.double_quant, gpu=work.memory.gpu,
                is_assumed=work.memory.length.is_assumed,
                subject=self._subject, fitting=self._fitting, rehearsal=self._status,
                runs=self._studio.history.summaries,
            )
        )  # fmt: skip

    def paint_options(self) -> None:
        self._screen.render_options(*option_values(self._studio.workspace.job.draft))

    @property
    def _capacity(self) -> Capacity | None:
        return what_if_capacity(self._studio.workspace.memory.gpu) or self._studio.room.own

    @property
    def _subject(self) -> Subject | None:
        work = self._studio.workspace
        if work.base.facts is None or work.job.draft.issues:
            return None
        device = "cuda" if work.memory.gpu else work.job.device
        return Subject(
            work.base.facts,
            work.job.config,
            work.memory.length.tokens,
            work.memory.micro_batch,
            device,
            context_of(work.memory.gpu),
        )

    @property
    def _status(self) -> RehearsalStatus:
        rehearser = self._studio.rehearser
        return RehearsalStatus(
            state=rehearser.state,
            share=rehearser.share,
            seconds_ago=time.monotonic() - rehearser.at if rehearser.at is not None else None,
            problem=rehearser.problem,
            formula_bytes=self._formula_bytes,
        )

    @property
    def _formula_bytes(self) -> int | None:
        """The peak as the closed form has it, where a rehearsal has replaced it."""
        work, subject = self._studio.workspace, self._subject
        side = side_of(work.job.config)
        if (
            work.memory.shown is None
            or subject is None
            or work.memory.shown.bar(side).variant.source != "rehearsal"
        ):
            return None
        return closed_form.variant_of(
            subject.facts, subject.config, seq_len=subject.seq_len, micro_batch=subject.micro_batch,
            device=subject.device,
        ).peak_bytes  # fmt: skip

    def _paint_mark(self) -> None:
        work = self._studio.workspace
        if work.memory.shown is not None:
            side = side_of(work.job.config)
            self._screen.show_mark(mark_of(work.memory.shown.bar(side), self._status))

    def _seen(self, is_visible: bool) -> None:
        """Only what is looked at is rehearsed, and only a visible mark counts its seconds."""
        self._is_seen = is_visible
        self._studio.rehearser.want(is_visible)
        if is_visible:
            if self._is_stale:
                self.paint()
            self._tick.start()
            self._paint_mark()
        else:
            self._tick.stop()

    def _look_for_largest(self) -> None:
        subject, capacity = self._subject, self._capacity
        if subject is None or capacity is None:
            return
        usable = capacity.usable_bytes
        self._studio.background.submit("largest", lambda: fitting(subject, usable), self._take_largest)

    def _take_largest(self, found: Fitting) -> None:
        if found != self._fitting:
            self._fitting = found
            self._paint_now()
