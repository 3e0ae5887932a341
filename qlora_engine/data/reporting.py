"""The job behind `qlora data` and the window's Data page: read the data as a run would, answer what is asked. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qlora_engine import config_io
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data import inspection, kept_tokenizer, pipeline
from qlora_engine.events import Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import DataReportJob
from qlora_engine.models import prepare, spec


def opened(config: TrainingConfig, control: Control, report: pipeline.Report) -> inspection.Inspector:
    """The data as a run of `config` would read them, but not packed; from the cache where they were read before.

    Raises:
        EngineError: no such model or data.
        Cancelled: asked to stop.
    """
    path = prepare.ensure_ready(
        config.model.name, config.model.revision, config.model.offline, control, report
    )
    tokenizer = kept_tokenizer.load(path, trust_remote_code=config.model.trust_remote_code)
    found = pipeline.prepare(
        replace(config.data, packing=False), tokenizer, seed=config.training.seed,
        model_max_length=spec.facts_of_folder(path).max_positions, is_offline=config.model.offline,
        report_progress=report, control=control, is_look=True,
    )  # fmt: skip
    return inspection.Inspector(found, tokenizer)


def report_job(job: DataReportJob, control: Control) -> Iterator[Event]:
    """Result: {"report", "rows", "asked"}. What would block the start is in the report's findings."""
    config = config_io.from_dict(job.config)

    def ready(emit: Emit) -> dict[str, Any]:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            emit(Progressed(phase, done, total, unit))

        inspector = opened(config, control, report)
        prepared = inspector.prepared
        return {
            "report": prepared.report.to_json(),
            "rows": inspection.shown_rows(prepared.whole, inspector.tokenizer, job.show_rows),
            "asked": inspection.asked(inspector, job.ask, control.check),
        }

    yield PhaseChanged("tokenizing", f"Reading the dataset {config.data.path}")
    result = yield from events_while(ready)
    yield RunFinished(result)
