"""The Model page's panel on what 4 bits cost: the measuring and what it found."""

from __future__ import annotations

from app.presenters.quality import quality_state
from app.studio import Studio
from app.tabs.model.quality_panel import QualityPanel
from qlora_engine.quantization.variants import Variant


class QualityController:
    def __init__(self, studio: Studio, panel: QualityPanel) -> None:
        self._workspace, self._quality, self._panel = studio.workspace, studio.quality, panel
        for signal in (
            studio.quality.changed,
            studio.workspace.job.changed,
            studio.workspace.base.facts_changed,
        ):
            signal.connect(self.paint)
        panel.measure_asked.connect(studio.quality.begin)
        panel.stop_asked.connect(lambda: studio.quality.stop())
        self.paint()

    def paint(self) -> None:
        work = self._workspace
        quantization = work.job.config.quantization
        own = Variant(quantization.quant_type, double_quant=quantization.double_quant)
        has_model = work.base.facts is not None and not work.job.draft.issues
        self._panel.show_state(
            quality_state(self._quality.report, own, self._quality.status, has_model=has_model)
        )
