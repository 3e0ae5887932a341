"""Setup, model: the catalog, the chosen model's facts, and what 4 bits cost it."""

from __future__ import annotations

from app.presenters.model import known_names, model_state
from app.studio import Studio
from app.tab import TabController, Ways
from app.tabs.model.known_controller import KnownModels
from app.tabs.model.quality import QualityController
from app.tabs.model.screen import ModelScreen


class ModelController(TabController):
    def __init__(self, studio: Studio, screen: ModelScreen, ways: Ways) -> None:
        self._workspace, self._screen = studio.workspace, screen
        self.quality = QualityController(studio, screen.quality)
        self.known = KnownModels(studio, screen)
        work = studio.workspace
        for signal in (
            work.base.models_changed,
            work.base.facts_changed,
            work.base.fetch.changed,
            work.job.changed,
        ):
            signal.connect(self.paint)
        screen.chosen.connect(work.job.choose_model)
        screen.folder_added.connect(work.base.add_folder)
        screen.resize_asked.connect(self._turn_resizing)
        screen.prepare_asked.connect(work.base.fetch_now)
        screen.cancel_asked.connect(work.base.fetch.forget)
        screen.next_asked.connect(lambda: ways.go_to("data"))
        studio.background.submit("known names", known_names, screen.offer_names)
        self.paint()

    def _turn_resizing(self) -> None:
        job = self._workspace.job
        job.edit("model.resize_embeddings", not job.config.model.resize_embeddings)

    def paint(self) -> None:
        work = self._workspace
        self._screen.show_state(
            model_state(
                work.job.config.model.name, work.base.models, work.base.facts, work.base.facts_error, work.base.fetch.text,
                work.base.fetch.share, work.base.fetch.error,
            )
        )  # fmt: skip
