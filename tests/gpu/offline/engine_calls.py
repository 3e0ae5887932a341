"""The only module of the GPU script that calls the engine: what its other modules need, in the engine's public words.

Imports the ML stack.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_engine import adapters, config_io, data
from qlora_engine.config import ModelSettings, TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.data.batches import IGNORED, Batch
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.events import Event
from qlora_engine.jobs import TrainJob
from qlora_engine.memory import context, tracker
from qlora_engine.memory.estimate import Variant, estimate
from qlora_engine.memory.rehearsal import Question, rehearse
from qlora_engine.models import known, loading, spec
from qlora_engine.models.spec import ModelFacts
from qlora_engine.monitor import paging
from qlora_engine.training import loss, optim, recipe
from tests.engine.memory.measure import highest_live


def settings(changes: Mapping[str, Any], micro_batch: int = 1) -> TrainingConfig:
    """The default configuration with changes by dotted path; one micro-batch per step."""
    found = with_value(TrainingConfig(), "training.effective_batch", micro_batch)
    for path, value in changes.items():
        found = with_value(found, path, value)
    return found


def plan(device: str, compute_dtype: str = "auto") -> DevicePlan:
    return plan_device(ModelSettings(device=device), compute_dtype)


def known_facts(name: str) -> ModelFacts:
    found = known.find(name)
    assert found is not None, name
    return found.facts()


def folder_facts(folder: Path) -> ModelFacts:
    return spec.facts_of_folder(folder)


def context_measured(torch_version: str) -> context.Record:
    """What an empty process takes on this card, measured now or before."""
    return context.ensure(torch.cuda.get_device_name(0), torch_version)


@dataclass(frozen=True)
class Predicted:
    """What the program says before a run: the closed form and the rehearsal, and what the driver would show."""

    formula: Variant
    rehearsal: Variant


def predicted(facts: ModelFacts, config: TrainingConfig, seq_len: int, rows: int, device: str) -> Predicted:
    is_double = config.quantization.double_quant
    known_context = context.context_of()
    closed = estimate(
        facts, config, seq_len=seq_len, micro_batch=rows, device=device, wants_advice=False, context=known_context
    )  # fmt: skip
    traced = rehearse(Question(facts, config, seq_len, rows, device))
    return Predicted(closed.chosen(is_double), traced.chosen(is_double))


def load(folder: Path, config: TrainingConfig, device: str) -> Any:
    """The base as a run loads it, in 4 bits."""
    return loading.load_quantized(folder, config.quantization, plan(device))


def random_base(facts: ModelFacts, config: TrainingConfig, device: str) -> Any:
    """A 4-bit base of the model's shape whose random weights were made on the device: no file, no copy."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoConfig, AutoModelForCausalLM

    where = plan(device)
    described = dict(facts.config)
    hf_config = AutoConfig.for_model(described.pop("model_type"), **described)
    with torch.device(where.name):
        model = AutoModelForCausalLM.from_config(hf_config, dtype=where.torch_dtype)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not torch.nn.Linear or linear is head:
                continue
            quantized = Linear4bit(
                linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=where.torch_dtype,
                compress_statistics=config.quantization.double_quant, quant_type=config.quantization.quant_type,
                device="meta",
            )  # fmt: skip
            quantized.weight = Params4bit(
                linear.weight.data, requires_grad=False, compress_statistics=config.quantization.double_quant,
                quant_type=config.quantization.quant_type, module=quantized,
            ).to(where.name)  # fmt: skip
            quantized.bias = linear.bias
            setattr(parent, name, quantized)
            del linear
    model.requires_grad_(False)
    loading.keep_weights_as_they_are(model)
    gc.collect()
    return model


@dataclass
class Trainee:
    """A base with adapters and an optimizer: what takes steps."""

    model: Any
    optimizer: Any
    config: TrainingConfig

    def step(self, batch: Batch) -> float:
        """One optimizer step on `batch`; its mean loss."""
        summed = loss.summed_loss(self.model, batch, kind=self.config.training.loss)
        (summed / batch.tokens).backward()
        found = float(summed.detach()) / batch.tokens
        del summed
        trained = [p for p in self.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, self.config.training.max_grad_norm)
        optim.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return found


def trainee(base: Any, config: TrainingConfig) -> Trainee:
    model, _ = adapters.attach(base, config.lora)
    model.train()
    inner = model.get_base_model()
    if config.training.gradient_checkpointing:
        inner.activation_checkpointing_enable({"use_reentrant": False})
        inner.enable_input_require_grads()
    optimizer = optim.build(config.training, [p for p in model.parameters() if p.requires_grad])
    return Trainee(model, optimizer, config)


def counted_step(one: Trainee, batch: Batch) -> int:
    """The peak of a step on the CPU, where no allocator keeps it: what stays, and the most that was alive besides."""
    state = [v for s in one.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    static = tracker.model_bytes(one.model) + tracker.tensor_bytes(state)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as prof:
        one.step(batch)
    return static + highest_live(prof.profiler.kineto_results.events())


def model_bytes(model: Any) -> int:
    return tracker.model_bytes(model)


def put_back(one: Trainee) -> Any:
    """The base as it was before `trainee`."""
    inner = one.model.get_base_model()
    if one.config.training.gradient_checkpointing:
        inner.activation_checkpointing_disable()
        inner.disable_input_require_grads()
    base = one.model.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config
    one.optimizer.state.clear()
    one.model = one.optimizer = None
    gc.collect()
    return base


def random_batch(vocab: int, rows: int, seq_len: int, device: str, *, packed: int = 1) -> Batch:
    """Random tokens, all trained; with `packed` above 1 each sequence holds that many documents of one length."""
    ids = torch.randint(5, vocab, (rows, seq_len), generator=torch.Generator().manual_seed(0))
    positions = None
    if packed > 1:
        positions = torch.arange(seq_len).remainder(seq_len // packed).expand(rows, -1).contiguous()
    return Batch(ids, ids.clone(), None, positions, ids.numel()).to(plan(device).name)


def managed_bytes() -> int:
    return paging.managed_bytes()


def state_of(optimizer: Any) -> Any:
    """What the optimizer keeps: class, bytes, paged bytes."""
    return paging.optimizer_report(optimizer)


def token_rows(file: Path, model: Path, seq_len: int) -> list[tuple[list[int], list[int]]]:
    """(token ids, labels) of each row of `file`, as a run would train them."""
    config = settings({"data.path": str(file), "data.held_out_fraction": 0.0, "data.seq_len": seq_len})
    prepared = data.prepare(config.data, loading.load_tokenizer(model), seed=config.training.seed)
    return [
        (
            list(row.input_ids),
            [t if on else IGNORED for t, on in zip(row.input_ids, row.trained, strict=True)],
        )
        for row in prepared.train
    ]


def run_events(config: TrainingConfig) -> Iterator[Event]:
    """A whole run of the program in this process."""
    return recipe.train(TrainJob(config_io.to_dict(config)), Control())
