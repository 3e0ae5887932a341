"""Model page: the catalog and the chosen model's facts."""

from __future__ import annotations

from collections.abc import Callable

from app.presenters.model import model_state
from app.screens.model import ModelScreen
from app.studio import Studio


class ModelController:
    def __init__(self, studio: Studio, screen: ModelScreen, go_to: Callable[[str], None]) -> None:
        self._workspace, self._screen = studio.workspace, screen
        work = studio.workspace
        for signal in (work.models_changed, work.facts_changed, work.fetch.changed, work.draft_changed):
            signal.connect(self.paint)
        screen.chosen.connect(work.choose_model)
        screen.folder_added.connect(work.add_folder)
        screen.prepare_asked.connect(work.fetch_model)
        screen.cancel_asked.connect(work.fetch.forget)
        screen.next_asked.connect(lambda: go_to("data"))
        self.paint()

    def paint(self) -> None:
        work = self._workspace
        self._screen.show_state(
            model_state(
                work.config.model.name, work.models, work.facts, work.facts_error, work.fetch.text,
                work.fetch.share, work.fetch.error,
            )
        )  # fmt: skip
