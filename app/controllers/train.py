"""Train page: the recipe before, the picture during, and the whole of it after a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtWidgets import QFileDialog

from app.controllers.options import option_values
from app.presenters.draft import CUSTOM
from app.screens.train import LIVE, TrainScreen
from app.studio import Studio
from qlora_engine import config_io
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from app.controllers.live_memory import LiveMemory
    from app.screens.train_charts import TrainCharts

JOB_FILES = "Job files (*.toml)"


class TrainController:
    def __init__(self, studio: Studio, screen: TrainScreen) -> None:
        self._studio, self._screen = studio, screen
        self._drawn: tuple[int, int, int] | None = None
        self.memory: LiveMemory | None = None
        work, trainer = studio.workspace, studio.trainer
        self._presets = config_io.presets()
        screen.set_presets([(preset.name, preset.title) for preset in self._presets])
        work.job.changed.connect(self.paint_settings)
        trainer.state_changed.connect(self._state_changed)
        trainer.changed.connect(self.paint_run)
        screen.edited.connect(work.job.edit)
        screen.reset_asked.connect(work.job.reset_option)
        screen.preset_chosen.connect(work.choose_preset)
        screen.wish.connect(trainer.ask)
        screen.save_job_asked.connect(self._save_job)
        screen.open_job_asked.connect(self._open_job)
        self.paint_settings()
        self.paint_run()

    def set_charts(self, charts: TrainCharts) -> None:
        """The charts come late, and with them numpy and what draws the memory."""
        from app.controllers.live_memory import LiveMemory

        self._screen.set_charts(charts)
        self.memory = LiveMemory(self._studio, charts.memory_view)
        self._drawn = None
        self.paint_run()

    def paint_settings(self) -> None:
        draft = self._studio.workspace.job.draft
        preset = next((p for p in self._presets if p.name == draft.preset), None)
        note = preset.description if preset is not None else "Settings of your own, from a job file or a run."
        self._screen.render_settings(
            *option_values(draft), draft.preset if preset else CUSTOM, note,
            not self._studio.trainer.run.is_live,
        )  # fmt: skip

    def paint_run(self) -> None:
        run = self._studio.trainer.run
        self._screen.render_run(run)
        self._paint_sentence()
        charts = self._screen.charts
        if charts is None or not self._screen.isVisible():
            return
        drawn = (len(run.series["loss"]), len(run.series["held_out"]), run.from_step)
        if drawn != self._drawn or run.state == "starting":
            charts.show_run(run)
        self._drawn = drawn

    def _state_changed(self) -> None:
        run = self._studio.trainer.run
        if run.state == "starting":
            self._drawn = None
            self._screen.notice.say("")
            self._screen.show_view(LIVE)
        self.paint_settings()
        self.paint_run()

    def _paint_sentence(self) -> None:
        run = self._studio.trainer.run
        sentences = {
            "idle": "Choose a recipe, then press Start",
            "running": "The run is training",
            "finished": "The run has finished: try it, or export it",
            "stopped": "The run was stopped",
            "failed": "The run failed",
        }
        text = "" if run.status.is_pausing else sentences.get(run.state, "")
        self._screen.sentence.setText(text or run.phase_text)

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
