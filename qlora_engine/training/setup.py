"""Everything a run needs before its first step, in the order in which it can fail cheaply. Imports the ML stack."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qlora_engine import adapters, config_io, data
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data import batches
from qlora_engine.data.templates import chosen
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    AdaptersAttached,
    DatasetPrepared,
    Event,
    ModelLoaded,
    Noticed,
    PhaseChanged,
    PlanMade,
    Progressed,
)
from qlora_engine.memory import context
from qlora_engine.models import catalog, loading, prepare
from qlora_engine.models.packing import packing_of_folder
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import (
    checkpoint,
    identity,
    known_start,
    optim,
    packed,
    recomputing,
    room,
    router_loss,
    schedule,
    vocabulary,
    ways,
)
from qlora_engine.training.fast import allocator
from qlora_engine.training.fast.install import FastPaths
from qlora_engine.training.known_start import KnownStart
from qlora_engine.training.versions import versions


@dataclass
class Parts:
    """What the loop works with."""

    config: TrainingConfig
    folder: RunFolder
    plan: DevicePlan
    model: Any
    tokenizer: Any
    base_path: Path
    data: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    schedule: schedule.Schedule
    scaler: Any
    loss_kind: str
    pad_token_id: int
    micro_batch: int
    predicted_peak_bytes: int | None
    grouped_experts_bytes: int = 0
    """What computing all experts of a block together takes, by the estimate."""
    router: router_loss.RouterLoss | None = None
    """The routers' auxiliary loss, where it is wanted and the class has one."""
    fast: FastPaths = field(default_factory=FastPaths)
    transient_peak_bytes: int | None = None
    """On the CPU: the most that was alive during the dry step beyond the model itself."""
    has_experts: bool = False
    is_chunkable: bool = True
    """Whether the chunked loss gives what the model's own logits give."""
    made: dict[str, Any] = field(default_factory=dict)
    """What its checkpoints are made with (training.identity)."""
    known: KnownStart = field(default_factory=KnownStart)
    saved_step: int | None = None
    """The step of the checkpoint that this process wrote or loaded last."""


def prepare_parts(
    config: TrainingConfig, folder: RunFolder, control: Control
) -> Generator[Event, None, Parts]:
    """Model, adapters, data, optimizer and plan, with events on the way; everything found is written to `run.json`.

    Raises:
        EngineError: anything a person can mend.
        Cancelled: asked to stop.
    """
    plan = plan_device(config.model, config.quantization.compute_dtype)
    _seed(config.training.seed)
    if plan.kind == "cuda":
        yield from _know_context(plan, control)
    else:
        allocator.keep_freed_memory()
    base_path = yield from _ready_model(config, control)
    facts = catalog.facts(config.model.name, config.model.revision, config.model.offline)
    asked, config = config, (yield from _as_the_base_is(config, base_path))
    tokenizer = loading.load_tokenizer(base_path, trust_remote_code=config.model.trust_remote_code)
    prepared = yield from _ready_data(config, tokenizer, facts, control)
    suspects = _rows_beyond(prepared, facts.vocab_size)
    facts = yield from vocabulary.settled(tokenizer, facts, config.model.resize_embeddings, suspects)
    control.check()
    config, micro_batch, estimate = room.choose(config, facts, prepared, plan)
    yield from room.said(asked.training, config.training)
    checkpoint.require_disk(folder.path, _disk_bytes(estimate), "a run with these settings")
    loaded = yield from _load(config, base_path, plan, control, facts.vocab_size, tokenizer)
    model, attached = yield from _attach(config, loaded, base_path, facts.new_rows)
    prepared = yield from packed.unpacked_where_rows_leak(model, prepared, plan)
    parts = _assembled(config, folder, plan, model, tokenizer, base_path, prepared, micro_batch, estimate)
    parts.has_experts = bool(facts.experts)
    fingerprint = loading.fingerprint(base_path)
    parts.known = known_start.read(parts, fingerprint)
    yield from ways.choose(parts, control)
    parts.made = identity.made_with(asked, _contents(parts, fingerprint))
    planned = _plan_event(parts, estimate)
    _record(parts, loaded, planned, attached, fingerprint)
    yield planned
    return parts


def _attach(
    config: TrainingConfig, loaded: Any, base_path: Path, new: int
) -> Generator[Event, None, tuple[Any, adapters.AdapterReport]]:
    model, attached = adapters.attach(
        loaded.model, config.lora, base_path=base_path, seed=config.training.seed, new=new
    )
    _make_trainable(model, config)
    yield AdaptersAttached(
        attached.trainable_parameters,
        attached.adapter_bytes,
        attached.target_modules,
        attached.dtype,
        attached.variant,
    )
    return model, attached


def _assembled(
    config: TrainingConfig, folder: RunFolder, plan: DevicePlan, model: Any, tokenizer: Any, base_path: Path,
    prepared: Any, micro_batch: int, estimate: Any,
) -> Parts:  # fmt: skip
    """With the optimizer over what is trained, and the schedule over the rows."""
    optimizer = optim.build(config.training, [p for p in model.parameters() if p.requires_grad])
    steps = schedule.plan(config.training, len(prepared.train), batches.order)
    return Parts(
        config=config,
        folder=folder,
        plan=plan,
        model=model,
        tokenizer=tokenizer,
        base_path=base_path,
        data=prepared,
        optimizer=optimizer,
        scheduler=schedule.learning_rates(config.training, optimizer, steps),
        schedule=steps,
        scaler=torch.amp.GradScaler(plan.kind, enabled=plan.torch_dtype_name == "float16"),
        loss_kind=config.training.loss,
        pad_token_id=pad_token_id(tokenizer),
        micro_batch=micro_batch,
        predicted_peak_bytes=estimate.chosen(config.quantization.double_quant).peak_bytes,
        grouped_experts_bytes=estimate.grouped_experts_bytes,
    )


def pad_token_id(tokenizer: Any) -> int:
    """The id that fills short rows; never seen by the loss, since padding is masked by length (CORRECTNESS 14)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def _know_context(plan: DevicePlan, control: Control) -> Generator[Event, None, None]:
    """Have an empty process measured on this GPU, once; a run never fails for want of it."""
    yield PhaseChanged("preparing", f"Looking up what an empty process takes on {plan.title}")
    name = torch.cuda.get_device_name(plan.index)
    yield from events_while(lambda _: context.ensure(name, torch.__version__, plan.index, control.check))


def _ready_model(config: TrainingConfig, control: Control) -> Generator[Event, None, Path]:
    yield PhaseChanged("preparing", f"Looking for the model {config.model.name}")

    def work(emit: Emit) -> Path:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            emit(Progressed(phase, done, total, unit))

        return prepare.ensure_ready(
            config.model.name, config.model.revision, config.model.offline, control, report
        )

    return (yield from events_while(work))


def _as_the_base_is(config: TrainingConfig, base_path: Path) -> Generator[Event, None, TrainingConfig]:
    """The settings with what a base that comes quantized brings with it, and what becomes of its weights."""
    packing = packing_of_folder(base_path)
    if packing is None:
        return config
    found = loading.as_stored(config.quantization, packing)
    yield Noticed("info", "model.converted", f"The base comes quantized: {packing.words(found.quant_type)}")
    return replace(config, quantization=found)


def _ready_data(
    config: TrainingConfig, tokenizer: Any, facts: Any, control: Control
) -> Generator[Event, None, Any]:
    yield PhaseChanged("tokenizing", f"Reading the dataset {config.data.path}")

    def work(emit: Emit) -> Any:
        return data.prepare(
            config.data,
            tokenizer,
            seed=config.training.seed,
            model_max_length=facts.max_positions,
            is_offline=config.model.offline,
            report_progress=lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
            control=control,
        )

    prepared = yield from events_while(work)
    yield DatasetPrepared(prepared.report.to_json())
    return prepared


def _rows_beyond(prepared: Any, vocab_size: int) -> Iterator[Sequence[int]]:
    """The rows, one by one, unless the largest token of all that were made, used or not, has an embedding anyway."""
    stores = (prepared.whole.store, prepared.held_out.store)
    if max(store.largest_id() for store in stores) >= vocab_size:
        yield from (row.input_ids for rows in (prepared.train, prepared.held_out) for row in rows)


def _load(
    config: TrainingConfig, base_path: Path, plan: DevicePlan, control: Control, rows: int, tokenizer: Any
) -> Generator[Event, None, Any]:
    yield PhaseChanged("loading", f"Loading {config.model.name} in 4 bits on {plan.title}")
    control.check()

    def work(emit: Emit) -> Any:
        return loading.load_quantized(
            base_path,
            config.quantization,
            plan,
            trust_remote_code=config.model.trust_remote_code,
            report_progress=lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
            rows=rows,
            tokenizer=tokenizer,
        )

    loaded = yield from events_while(work)
    yield ModelLoaded(asdict(loaded.report))
    control.check()
    return loaded


def _make_trainable(model: Any, config: TrainingConfig) -> None:
    model.train()
    if config.training.gradient_checkpointing:
        base = model.get_base_model()
        if not base.supports_gradient_checkpointing:
            raise EngineError(
                "training.checkpointing",
                f"{type(base).__name__} cannot recompute its activations",
                "set training.gradient_checkpointing to false; it needs more memory",
            )
        recomputing.enable(base, config.training.checkpoint_every)
        if config.training.offload_inputs:
            recomputing.keep_inputs(base, recomputing.on_host)
    adapters.assert_only_adapters_train(model)


def _plan_event(parts: Parts, estimate: Any) -> PlanMade:
    return PlanMade(
        total_steps=parts.schedule.total_steps,
        steps_per_epoch=parts.schedule.steps_per_epoch,
        micro_batch=parts.micro_batch,
        accumulation=math.ceil(parts.config.training.effective_batch / parts.micro_batch),
        train_rows=len(parts.data.train),
        held_out_rows=len(parts.data.held_out),
        tokens_per_epoch=batches.token_count(parts.data.train),
        seq_len=parts.data.seq_len,
        device=parts.plan.name,
        compute_dtype=parts.plan.torch_dtype_name,
        predicted_peak_bytes=parts.predicted_peak_bytes,
        estimate=estimate.to_json(),
    )


def _contents(parts: Parts, fingerprint: dict[str, str]) -> dict[str, str]:
    data = parts.data
    template = chosen(parts.tokenizer, parts.config.data).jinja
    return identity.contents_of(fingerprint, data.report.sha256, data.train, data.held_out, template)


def _record(
    parts: Parts,
    loaded: Any,
    planned: PlanMade,
    attached: adapters.AdapterReport,
    fingerprint: dict[str, str],
) -> None:
    config = parts.config
    plan = asdict(planned)
    estimate = plan.pop("estimate")
    parts.folder.update(
        job=config_io.to_dict(config),
        seed=config.training.seed,
        versions=versions(),
        model={
            "name": config.model.name,
            "path": str(parts.base_path),
            "revision": config.model.revision,
            "fingerprint": fingerprint,
        },
        data={"path": config.data.path, **parts.data.report.to_json()},
        load_report=asdict(loaded.report),
        adapters=asdict(attached),
        plan=plan,
        estimate=estimate,
        predicted_peak_bytes=planned.predicted_peak_bytes,
        loss_kind=parts.loss_kind,
        fast_paths=parts.fast.to_json(),
    )


def _disk_bytes(estimate: Any) -> int:
    """Three checkpoints (two kept, one being written) of adapters and optimizer state, and some room for logs."""
    parts = estimate.double_quant.parts
    one = parts["adapters"] + parts["optimizer_resident"] + parts["optimizer_pageable"]
    return int(3 * one) + checkpoint.DISK_MARGIN_BYTES
