"""A real QLoRA step on the CPU, its peak taken by torch's memory profiler: another route than the rehearsal's ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qlora_engine import adapters
from qlora_engine.config import ModelSettings, TrainingConfig
from qlora_engine.data.batches import Batch
from qlora_engine.device import plan_device
from qlora_engine.memory import tracker
from qlora_engine.models import catalog, loading
from qlora_engine.training import loss, optim, recomputing


@dataclass(frozen=True)
class Measured:
    """`static_bytes`: model, constants, adapters and optimizer state; `peak_bytes`: with the most that a step adds."""

    static_bytes: int
    peak_bytes: int


def build(folder: Path, config: TrainingConfig) -> Any:
    """The model a run would train: loaded in 4 bits, adapters attached, checkpointing as asked."""
    plan = plan_device(ModelSettings(device="cpu"))
    facts = catalog.facts_for(replace(config.model, name=str(folder)))
    loaded = loading.load_quantized(folder, config.quantization, plan, rows=facts.vocab_size)
    model, _ = adapters.attach(loaded.model, config.lora, new=facts.new_rows)
    model.train()
    if config.training.gradient_checkpointing:
        recomputing.enable(model.get_base_model(), config.training.checkpoint_every)
    return model


def measured_step(folder: Path, config: TrainingConfig, seq_len: int, micro_batch: int) -> Measured:
    """The peak of the second step: by then the optimizer has its state.

    One thread: steps this small only wait for a second one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(folder, config, seq_len, micro_batch)
    finally:
        torch.set_num_threads(threads)


def _measured(folder: Path, config: TrainingConfig, seq_len: int, micro_batch: int) -> Measured:
    model = build(folder, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.build(config.training, trained)
    ids = torch.randint(5, 300, (micro_batch, seq_len), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, ids.clone(), None, None, ids.numel())
    micro_batches = config.training.effective_batch // micro_batch
    _step(model, optimizer, trained, batch, config, micro_batches)
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    static = tracker.model_bytes(model) + tracker.tensor_bytes(state)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as prof:
        _step(model, optimizer, trained, batch, config, micro_batches)
    return Measured(static, static + highest_live(prof.profiler.kineto_results.events()))


def _step(
    model: Any, optimizer: Any, trained: list[Any], batch: Batch, config: TrainingConfig, count: int
) -> None:
    for _ in range(count):
        summed = loss.summed_loss(model, batch, kind=config.training.loss)
        (summed / batch.tokens).backward()
    del summed
    if config.training.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(trained, config.training.max_grad_norm)
    optim.step(optimizer)
    optimizer.zero_grad(set_to_none=True)


def highest_live(events: Iterable[Any]) -> int:
    """The highest sum of allocated minus freed bytes, in the order of time."""
    memory = sorted(
        (e.start_ns(), index, e.nbytes()) for index, e in enumerate(events) if e.name() == "[memory]"
    )
    live = highest = 0
    for _, _, size in memory:
        live += size
        highest = max(highest, live)
    return highest
