"""The job that measures what 4 bits cost on a model. Imports the ML stack."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine import config_io, data
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.events import Event, Noticed, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import QualityJob
from qlora_engine.models import loading, prepare, spec
from qlora_engine.models.fingerprint import base_sha256
from qlora_engine.quantization import heldout, store, weights
from qlora_engine.quantization.report import HeldOut, QualityReport, Score, WeightErrors
from qlora_engine.quantization.variants import MAIN, Options, options_from

WEIGHTS_SHARE = 0.4
"""Of a time limit, where the loss is measured too."""


@dataclass(frozen=True)
class _Question:
    """What is measured, and with what."""

    config: TrainingConfig
    options: Options
    path: Path
    facts: spec.ModelFacts
    plan: DevicePlan
    control: Control
    began: float

    @property
    def seconds_left(self) -> float | None:
        limit = self.options.max_seconds
        return None if limit is None else limit - (time.monotonic() - self.began)


def quality_job(job: QualityJob, control: Control) -> Iterator[Event]:
    """Measure, or show what was measured before; result: the report as JSON.

    Raises:
        EngineError: the model or the data cannot be had or read.
        Cancelled: asked to stop; nothing is kept then.
    """
    config, options = config_io.from_dict(job.config), options_from(job.options)
    began = time.monotonic()
    plan = plan_device(config.model, config.quantization.compute_dtype)
    path = yield from _ready_model(config, control)
    key = store.key_at(path, config, options)
    report = None if options.is_again else store.read(key)
    if report is None:
        facts = spec.facts_of_folder(path, config.model.name)
        report = yield from _measured(_Question(config, options, path, facts, plan, control, began))
        store.write(key, report)
    yield RunFinished(report.to_json())


def _measured(question: _Question) -> Generator[Event, None, QualityReport]:
    """Whatever can fail cheaply comes first."""
    places = weights.places_of(question.path, question.facts)
    notices = tuple(_left_out(question))
    for notice in notices:
        yield Noticed("warning", "quality.experts", notice)
    why_not = _why_no_loss(question)
    if question.options.has_loss and why_not:
        yield Noticed("warning", "quality.no_loss", f"The loss is not measured: {why_not}")
    prepared = None if why_not else (yield from _ready_data(question))
    found = yield from _measure_weights(question, places)
    held_out = None if prepared is None else (yield from _measure_loss(question, places, prepared))
    return QualityReport(
        model=question.facts.name,
        base_sha256=base_sha256(question.path),
        device=question.plan.name,
        compute_dtype=question.plan.torch_dtype_name,
        stored_dtype=question.facts.stored_dtype or "",
        weights=found,
        held_out=held_out,
        why_no_held_out=why_not,
        notices=notices,
        versions=store.versions(),
        unix_time=time.time(),
    )


def _left_out(question: _Question) -> Iterator[str]:
    """What a run keeps in 4 bits and this does not."""
    count = sum(one.weights for one in question.facts.stacked if one.is_quantized)
    if count:
        yield (
            f"The experts, {count:,} parameters, stay in 16 bits here and are not measured; a run keeps them in 4 bits "
            "unless quantization.experts says otherwise."
        )


def _ready_model(config: TrainingConfig, control: Control) -> Generator[Event, None, Path]:
    yield PhaseChanged("preparing", f"Looking for the model {config.model.name}")

    def work(emit: Emit) -> Path:
        return prepare.ensure_ready(
            config.model.name, config.model.revision, config.model.offline, control,
            lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
        )  # fmt: skip

    return (yield from events_while(work))


def _measure_weights(
    question: _Question, places: Sequence[weights.Place]
) -> Generator[Event, None, WeightErrors]:
    options, left = question.options, question.seconds_left
    count = len(options.variants)
    yield PhaseChanged("measuring", f"Storing each of {len(places)} linear layers in {count} ways")
    share = WEIGHTS_SHARE if options.has_loss else 1.0
    seconds = None if left is None else share * left
    return (yield from weights.measure(places, options, question.plan, question.control, seconds))


def _why_no_loss(question: _Question) -> str:
    if not question.options.has_loss:
        return "it was not asked for"
    return heldout.missing_memory(question.facts, question.plan)


def _measure_loss(
    question: _Question, places: Sequence[weights.Place], prepared: data.PreparedData
) -> Generator[Event, None, HeldOut]:
    rows, is_held_out = (prepared.held_out, True) if prepared.held_out else (prepared.train, False)
    yield PhaseChanged("loading", f"Loading {question.facts.name} unquantized")
    trusts = question.config.model.trust_remote_code
    subject = yield from events_while(
        lambda _: heldout.Subject(question.facts, question.plan, trust_remote_code=trusts)
    )
    question.control.check()
    began = time.monotonic()
    scores, reference, tokens, is_cut = yield from _score_all(
        question, subject, places, rows[: question.options.max_rows]
    )
    return HeldOut(
        origin=prepared.report.origin,
        data_sha256=prepared.report.sha256,
        rows_available=len(rows),
        is_held_out=is_held_out,
        is_out_of_time=is_cut,
        row_tokens=tokens,
        reference=reference,
        scores=scores,
        seconds=time.monotonic() - began,
    )


def _score_all(
    question: _Question, subject: heldout.Subject, places: Sequence[weights.Place], rows: Sequence[Any]
) -> Generator[Event, None, tuple[dict[str, Score], Score, tuple[int, ...], bool]]:
    """Scores by variant, the unquantized model's, trained tokens by row, and whether time took rows away."""
    control, left = question.control, question.seconds_left
    yield PhaseChanged(
        "evaluating", f"Reading {len(rows)} rows with {1 + len(MAIN)} models, one after the other"
    )
    subject.look_at(min(rows, key=lambda row: len(row.input_ids)))
    seconds = None if left is None else max(0.0, left) / (1 + len(MAIN))
    kept, reference = yield from events_while(
        lambda emit: heldout.score_unquantized(
            subject, rows, control, _counted(emit, 0, (1 + len(MAIN)) * len(rows)), seconds=seconds
        )
    )
    used = rows[: len(kept)]
    total = (1 + len(MAIN)) * len(used)
    scores: dict[str, Score] = {}
    for place, variant in enumerate(MAIN, start=1):

        def work(emit: Emit, place: int = place, variant: Any = variant) -> Score:
            subject.store_as(variant, places, control)
            done = _counted(emit, place * len(used), total)
            return heldout.score_stored(subject, used, kept, reference, control, done)

        scores[variant.key] = yield from events_while(work)
    return scores, reference, tuple(len(states) for states in kept), len(used) < len(rows)


def _counted(emit: Emit, before: int, total: int) -> heldout.Done:
    return lambda number: emit(Progressed("evaluating", before + number, total, "rows"))


def _ready_data(question: _Question) -> Generator[Event, None, data.PreparedData]:
    config = question.config
    yield PhaseChanged("tokenizing", f"Reading the dataset {config.data.path}")
    tokenizer = loading.load_tokenizer(question.path, trust_remote_code=config.model.trust_remote_code)

    def work(emit: Emit) -> data.PreparedData:
        return data.prepare(
            replace(config.data, packing=False),
            tokenizer,
            seed=config.training.seed,
            model_max_length=question.facts.max_positions,
            is_offline=config.model.offline,
            report_progress=lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
            control=question.control,
        )

    return (yield from events_while(work))
