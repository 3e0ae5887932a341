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
        work.draft_changed.connect(self.paint)
        screen.path_chosen.connect(work.choose_data)
        screen.edited.connect(work.edit)
        screen.reset_asked.connect(work.reset_option)
        screen.check_asked.connect(work.check_data)
        screen.cancel_asked.connect(work.cancel_check)
        self.paint()

    def paint(self) -> None:
        work = self._workspace
        can_check = work.facts_error is None and not work.draft.issues
        self._screen.show_state(
            data_state(
                work.config.data,
                work.data.report,
                work.data.rows,
                work.data.error,
                work.data.progress,
                can_check,
            )
        )
        self._screen.render_options(*option_values(work.draft))
