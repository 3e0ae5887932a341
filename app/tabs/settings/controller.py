"""Setup, settings: the recipe, the options, and job files."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtWidgets import QFileDialog

from app.controllers.options import option_values
from app.presenters.draft import CUSTOM
from app.studio import Studio
from app.tab import TabController
from app.tabs.settings.screen import SettingsScreen
from qlora_engine import config_io
from qlora_engine.errors import EngineError

JOB_FILES = "Job files (*.toml)"


class SettingsController(TabController):
    def __init__(self, studio: Studio, screen: SettingsScreen) -> None:
        self._studio, self._screen = studio, screen
        work = studio.workspace
        self._presets = config_io.presets()
        screen.set_presets([(preset.name, preset.title) for preset in self._presets])
        work.job.changed.connect(self.paint_settings)
        screen.edited.connect(work.job.edit)
        screen.reset_asked.connect(work.job.reset_option)
        screen.preset_chosen.connect(work.choose_preset)
        screen.save_job_asked.connect(self._save_job)
        screen.open_job_asked.connect(self._open_job)
        self.paint_settings()

    def entered(self, detail: str = "") -> None:
        if detail:
            self._screen.focus_option(detail)

    def paint_settings(self) -> None:
        draft = self._studio.workspace.job.draft
        preset = next((p for p in self._presets if p.name == draft.preset), None)
        note = preset.description if preset is not None else "Settings of your own, from a job file or a run."
        self._screen.render_settings(*option_values(draft), draft.preset if preset else CUSTOM, note)

    def _save_job(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self._screen, "Save the job file", "job.toml", JOB_FILES)
        if not name:
            return
        try:
            config_io.save(self._studio.workspace.job.config, Path(name), is_commented=True)
        except OSError as error:
            self._screen.notice.say(f"The job file was not saved: {error.strerror or error}", "Choose another folder", "bad")  # fmt: skip
            return
        self._screen.notice.say(f"Saved to {name}", f"In a terminal: qlora train {name}", "good")

    def _open_job(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self._screen, "Open a job file", "", JOB_FILES)
        if not name:
            return
        try:
            config = config_io.load(Path(name))
        except EngineError as error:
            self._screen.notice.say(str(error.message), error.hint, "bad")
            return
        self._studio.workspace.job.use_config(config)
        self._screen.notice.say(f"Settings of {Path(name).name}", "", "good")
