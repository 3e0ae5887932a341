"""Data page: the dataset, how it is read, and the report of what is trained."""

from __future__ import annotations

from app.controllers.options import option_values
from app.presenters.data import data_state
from app.screens.data import DataScreen
from app.studio import Studio


class DataController:
    def __init__(self, studio: Studio, screen: DataScreen) -> None:
        self._workspace, self._screen = studio.workspace, screen
        work = studio.workspace
        work.data.changed.connect(self.paint)
        work.job.changed.connect(self.paint)
        screen.path_chosen.connect(work.job.choose_data)
        screen.edited.connect(work.job.edit)
        screen.reset_asked.connect(work.job.reset_option)
        screen.check_asked.connect(work.watch.check)
        screen.cancel_asked.connect(work.watch.cancel)
        self.paint()

    def paint(self) -> None:
        work = self._workspace
        can_check = work.base.facts_error is None and not work.job.draft.issues
        self._screen.show_state(
            data_state(
                work.job.config.data,
                work.data.report,
                work.data.rows,
                work.data.error,
                work.data.progress,
                can_check,
            )
        )
        self._screen.render_options(*option_values(work.job.draft))
