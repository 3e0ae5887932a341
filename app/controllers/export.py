"""Export page: one export at a time, in an engine of its own."""

from __future__ import annotations

from pathlib import Path

from app.presenters.export import ExportFold, default_target, dtypes_of, formats, kept_text, merges_of
from app.presenters.runs import run_title, usable_runs
from app.screens.export import ExportScreen
from app.studio import Studio
from qlora_engine.events import Event
from qlora_engine.export.journal import drop
from qlora_engine.jobs import ExportJob, PushJob


class ExportController:
    def __init__(self, studio: Studio, screen: ExportScreen) -> None:
        self._studio, self._screen = studio, screen
        self._job = studio.jobs["export"]
        self.fold = ExportFold()
        self._run_dir = ""
        self._kind = "merged"
        screen.set_formats(formats())
        self._job.event_arrived.connect(self._take)
        self._job.ended.connect(self._end)
        studio.history.changed.connect(self._runs_changed)
        screen.run_chosen.connect(self.choose_run)
        screen.format_chosen.connect(self._choose_format)
        screen.export_asked.connect(self.export)
        screen.cancel_asked.connect(self._job.stop)
        screen.target_changed.connect(self._show_kept)
        screen.drop_asked.connect(self._drop)
        screen.push_asked.connect(self.push)
        self._runs_changed()

    def choose_run(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._runs_changed()

    def export(self) -> None:
        target = self._screen.out.text().strip()
        if self._run_dir and target and not self._job.is_running:
            self.fold.begin()
            self._job.start(ExportJob(self._run_dir, self._kind, target, self._screen.options()))
            self.paint()

    def push(self) -> None:
        """Upload what was just exported and proven."""
        name = self._screen.repository.text().strip()
        if name and self.fold.can_push and not self._job.is_running:
            folder = str(self.fold.result.get("path"))
            self.fold.begin_push()
            self._job.start(PushJob(folder, name, self._screen.public.isChecked()))
            self.paint()

    def _show_kept(self, target: str) -> None:
        is_idle = not self._job.is_running
        self._screen.show_kept(kept_text(target.strip(), self._run_dir, self._kind) if is_idle else "")

    def _drop(self) -> None:
        target = self._screen.out.text().strip()
        if target and not self._job.is_running:
            drop(Path(target))
            self._show_kept(target)

    def paint(self) -> None:
        self._screen.show_state(self.fold, has_runs=bool(self._run_dir))

    def _runs_changed(self) -> None:
        runs = [(str(s.path), run_title(s)) for s in usable_runs(self._studio.history.summaries)]
        known = [value for value, _ in runs]
        if self._run_dir not in known:
            self._run_dir = known[0] if known else ""
        self._screen.set_runs(runs, self._run_dir)
        self._choose_format(self._kind)

    def _choose_format(self, kind: str) -> None:
        self._kind = kind
        name = self._run_dir.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        if not self._job.is_running:
            target = str(default_target(name, kind)) if name else ""
            self._screen.set_choice(kind, target, dtypes_of(kind), merges_of(kind))
            self._show_kept(target)
        self.paint()

    def _take(self, event: Event) -> None:
        self.fold.fold(event)
        self.paint()

    def _end(self) -> None:
        self.paint()
        self._show_kept(self._screen.out.text())
