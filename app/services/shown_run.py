"""Which run the window shows, and what that run told: this window's own, or one that its folder tells of."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Signal

from app.presenters.run_fold import RunFold
from app.services.background import Background
from app.services.history import History
from app.services.kept_run import ELSEWHERE, KeptRun
from app.services.trainer import Trainer
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.stored import PLANNED
from qlora_engine.runs.summary import RunSummary

DRAFT, BEGINNING = "draft", "beginning"
"""Keys of what has no folder: the job being edited, and this window's run until it has told where it is kept. Any other
run's key is its folder."""


class ShownRun(QObject):
    """Signals: `changed` when another run is shown or this one stands elsewhere; `told` when its `fold` has more."""

    changed = Signal()
    told = Signal()

    def __init__(self, trainer: Trainer, history: History, background: Background) -> None:
        super().__init__()
        self._trainer, self._history = trainer, history
        self.keys: tuple[str, ...] = (DRAFT,)
        """What is chosen, the first of it shown."""
        self.kept = KeptRun(background)
        """What is told of a run that is not this window's."""
        self.kept.told.connect(self.told)
        self.kept.ended.connect(history.refresh)
        trainer.state_changed.connect(self._trainer_changed)
        trainer.changed.connect(self._trainer_told)
        history.changed.connect(self._history_changed)

    @property
    def key(self) -> str:
        return self.keys[0]

    @property
    def is_draft(self) -> bool:
        """True for what was not begun, so that its job can be changed."""
        found = self.summary
        is_planned = found is not None and found.state == PLANNED
        return self.key == DRAFT or (not self.is_own and is_planned)

    @property
    def is_own(self) -> bool:
        """True for the run that this window trains, or trained last."""
        run = self._trainer.run
        return self.key == BEGINNING or (self.key == run.run_dir and run.state != "idle")

    @property
    def path(self) -> Path | None:
        return None if self.key in (DRAFT, BEGINNING) else Path(self.key)

    @property
    def fold(self) -> RunFold:
        """What it told; empty for a draft and until its folder was read."""
        return self._trainer.run if self.is_own else self.kept.fold

    @property
    def summary(self) -> RunSummary | None:
        return self._history.find_in(self.key)

    @property
    def entry(self) -> RunEntry | None:
        """With its name, note, tags and place in the queue; None for what has no folder yet."""
        return self._history.entry_of(self.key)

    @property
    def state(self) -> str:
        """`draft`, the state of this window's run, `elsewhere` for one that another program trains, or as kept."""
        if self.is_draft:
            return DRAFT
        if self.is_own:
            return self._trainer.run.state
        found = self.summary
        if found is None:
            return "unreadable"
        return ELSEWHERE if found.state in ("running", "paused") else found.state

    def show(self, *keys: str) -> None:
        """Show a run, or several to compare."""
        if keys == self.keys:
            return
        self.keys = keys
        self._look()
        self.changed.emit()

    def show_own(self) -> None:
        """The run that this window has just begun."""
        self.show(self._trainer.run.run_dir or BEGINNING)

    def _look(self) -> None:
        """At the folder of a run that is not this window's."""
        self.kept.look(self.path if not self.is_own else None, self.state)

    def _trainer_changed(self) -> None:
        run = self._trainer.run
        if self.key == BEGINNING and run.run_dir is not None:
            self.keys = (run.run_dir,)
        if self.is_own:
            self.changed.emit()

    def _trainer_told(self) -> None:
        if self.is_own:
            self.told.emit()

    def _history_changed(self) -> None:
        if self.path is not None and not self.is_own:
            known = tuple(key for key in self.keys if self._history.find_in(key) is not None)
            if known != self.keys:
                self.show(*(known or (DRAFT,)))
                return
            self._look()
        self.changed.emit()
