"""Export: one export at a time, in an engine of its own."""

from __future__ import annotations

from pathlib import Path

from app.presenters.export import ExportFold, default_target, dtypes_of, formats, kept_text, merges_of
from app.studio import Studio
from app.tab import TabController
from app.tabs.export.screen import ExportScreen
from qlora_engine.events import Event
from qlora_engine.export.journal import drop
from qlora_engine.jobs import ExportJob, PushJob


class ExportController(TabController):
    """The form shows what `_choice` says; news of the runs never change what a person has filled in."""

    def __init__(self, studio: Studio, screen: ExportScreen) -> None:
        self._studio, self._screen = studio, screen
        self._job = studio.jobs["export"]
        self.fold = ExportFold()
        self._choice = ("", "merged")
        """The run's folder and the format."""
        self._shown: tuple[str, str] | None = None
        screen.set_formats(formats())
        self._job.event_arrived.connect(self._take)
        self._job.ended.connect(lambda *_: self.paint())
        studio.shown.changed.connect(self._runs_changed)
        screen.format_chosen.connect(self._choose_form)
        screen.export_asked.connect(self.export)
        screen.cancel_asked.connect(self._job.stop)
        screen.target_changed.connect(lambda *_: self._show_kept())
        screen.drop_asked.connect(self._drop)
        screen.push_asked.connect(self.push)
        self._runs_changed()

    def export(self) -> None:
        run_dir, kind = self._choice
        target = self._screen.out.text().strip()
        if run_dir and target and not self._job.is_running:
            self.fold.begin(f"{Path(run_dir).name}, {formats()[kind][0]}")
            self._job.start(ExportJob(run_dir, kind, target, self._screen.options()))
            self.paint()

    def push(self) -> None:
        """Upload what was just exported and proven."""
        name = self._screen.repository.text().strip()
        if name and self.fold.can_push and not self._job.is_running:
            folder = str(self.fold.result.get("path"))
            self.fold.begin_push()
            self._job.start(PushJob(folder, name, self._screen.public.isChecked()))
            self.paint()

    def paint(self) -> None:
        self._screen.show_state(self.fold, has_runs=bool(self._choice[0]))
        self._screen.set_editable(not self._job.is_running)
        self._show_kept()

    def _choose_form(self, kind: str) -> None:
        """Another form: the rest is filled in anew, once no export reads it any more."""
        if not self._job.is_running:
            self._choice = (self._choice[0], kind)
        self._runs_changed()

    def _runs_changed(self) -> None:
        summary = self._studio.shown.summary
        if not self._job.is_running:
            run_dir = str(summary.path) if summary is not None and summary.has_adapter else ""
            self._choice = (run_dir, self._choice[1])
        if self._shown != self._choice:
            self._shown = self._choice
            run_dir, kind = self._choice
            target = str(default_target(Path(run_dir).name, kind)) if run_dir else ""
            self._screen.set_choice(kind, target, dtypes_of(kind), merges_of(kind))
        self.paint()

    def _show_kept(self) -> None:
        """What an earlier export to the target left."""
        run_dir, kind = self._choice
        is_idle = not self._job.is_running
        self._screen.show_kept(kept_text(self._screen.out.text().strip(), run_dir, kind) if is_idle else "")

    def _drop(self) -> None:
        target = self._screen.out.text().strip()
        if target and not self._job.is_running:
            drop(Path(target))
            self._show_kept()

    def _take(self, event: Event) -> None:
        self.fold.fold(event)
        self.paint()
