"""Makes a model ready to load: downloaded or converted where it is not yet. Torch-free until a conversion runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from qlora_engine.bridge import Emit, events_while
from qlora_engine.control import Control
from qlora_engine.events import Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import PrepareModelJob
from qlora_engine.models import catalog, hub, spec

Report = Callable[[str, int, int | None, str], None]
VERBS = {"download": ("downloading", "Downloading"), "convert": ("converting", "Converting, once,")}


def ensure_ready(name: str, revision: str | None, offline: bool, control: Control, report: Report) -> Path:
    """The folder with config.json, safetensors and tokenizer of a model.

    Raises:
        EngineError: it cannot be had, with the reason.
        Cancelled: asked to stop.
    """
    resolved = catalog.resolve(name, revision, offline)
    control.check()
    if resolved.needs == "download":
        return hub.download(resolved.name, revision, control, report)
    assert resolved.path is not None
    if resolved.needs == "convert":
        from qlora_engine.models import gguf_import

        assert resolved.source is not None
        licence = catalog.STARTER_LICENCE if resolved.origin == catalog.STARTER else None

        def heard(phase: str, done: int, total: int | None, unit: str) -> None:
            control.check()
            report(phase, done, total, unit)

        gguf_import.convert(resolved.source, resolved.path, licence=licence, report=heard)
    spec.headers_of_folder(resolved.path)
    return resolved.path


def prepare_job(job: PrepareModelJob, control: Control) -> Iterator[Event]:
    """Get a model ready; result: {"path", "facts"}."""
    resolved = catalog.resolve(job.name, job.revision, job.offline)
    if resolved.needs is not None:
        phase, verb = VERBS[resolved.needs]
        yield PhaseChanged(phase, f"{verb} {job.name}")

    def work(emit: Emit) -> Path:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            emit(Progressed(phase, done, total, unit))

        return ensure_ready(job.name, job.revision, job.offline, control, report)

    path = yield from events_while(work)
    facts = replace(
        spec.facts_of_folder(path, job.name, origin=resolved.origin),
        revision=path.name if resolved.origin == "hub" else None,
    )
    yield RunFinished({"path": str(path), "facts": spec.facts_to_dict(facts)})
