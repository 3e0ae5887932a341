"""Drafts: which one is edited follows the list of runs; new ones are made here."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.services.shown_run import DRAFT
from app.studio import Studio
from app.widgets.banner import Banner
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.errors import EngineError
from qlora_engine.runs import plans
from qlora_engine.runs.record import RunFolder


class Drafts(QObject):
    """One draft has no folder: the first of the list, which a newcomer finds. Every other is a planned run."""

    def __init__(self, studio: Studio, banner: Banner) -> None:
        super().__init__(banner)
        self._studio, self._banner = studio, banner
        studio.shown.changed.connect(self._follow)

    def begin(self) -> None:
        """A new one from the start; what was prepared in its place is kept as a planned run."""
        job = self._studio.workspace.job
        if self._studio.shown.key != DRAFT or not job.is_touched:
            self._studio.shown.show(DRAFT)
            return
        if self._plan(job.scratch.config) is not None:
            job.begin_anew()
            self._studio.shown.show(DRAFT)

    def make(self, config: TrainingConfig) -> None:
        """A planned run with these settings, shown."""
        folder = self._plan(with_value(config, "output.name", None))
        if folder is not None:
            self._studio.history.expect(folder.path)
            self._studio.shown.show(str(folder.path))

    def keep(self, config: TrainingConfig) -> RunFolder | None:
        """The scratch draft as a planned run, shown; it begins anew."""
        folder = self._plan(config)
        if folder is not None:
            self._studio.history.expect(folder.path)
            self._studio.shown.show(str(folder.path))
            self._studio.workspace.job.begin_anew()
        return folder

    def _plan(self, config: TrainingConfig) -> RunFolder | None:
        try:
            folder = plans.create(config)
        except EngineError as error:
            self._banner.say(
                f"{error.message}.", error.hint, "bad", ("Dismiss", lambda: self._banner.say(""))
            )
            return None
        self._studio.history.also_look_in(config.output.runs_dir)
        self._studio.history.refresh()
        return RunFolder(folder.path.resolve())

    def _follow(self) -> None:
        """The draft in sight is the one that is edited."""
        shown = self._studio.shown
        if not shown.is_draft:
            return
        try:
            self._studio.workspace.job.open(shown.path)
        except EngineError as error:
            self._banner.say(
                f"{error.message}.", error.hint, "bad", ("Dismiss", lambda: self._banner.say(""))
            )
