"""One symbolic QLoRA step of the real model class: forward, loss, backward, optimizer, every storage counted.

No weights, no GPU. A model of one layer of each kind and one with a layer more are traced; layers of one kind cost the
same, so the rest is a straight line, phase by phase. Imports the ML stack.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from qlora_engine import config_io, installed, kept, parsing, paths
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data.batches import IGNORED, Batch
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import RehearseJob
from qlora_engine.memory import activations, generic, symbolic
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory.context import context_of
from qlora_engine.memory.estimate import Estimate
from qlora_engine.memory.ledger import Ledger, Peak
from qlora_engine.memory.operations import RULES
from qlora_engine.models import catalog
from qlora_engine.models.quiet import quiet
from qlora_engine.models.spec import ModelFacts
from qlora_engine.training import loss as losses
from qlora_engine.training import optim, recomputing

SCHEMA = 8
SIDES = {"double_quant": True, "single_quant": False}
MOVING = ("activations", "step_temporary", "gradients")
LINE_LENGTHS = (256, 512, 1024)
"""Where the curve of a class is measured that has no formula of its own."""
SLOW_SECONDS = 8
"""A class that goes through its tokens one by one takes so long at the first length; what it holds is a straight line, so half
of that is the other point."""
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """What is rehearsed."""

    facts: ModelFacts
    config: TrainingConfig
    seq_len: int
    micro_batch: int
    device: str = "cuda"
    upcast_unquantized: bool = False
    gpu: str | None = None
    """Whose context is added to the totals; None: this machine's."""

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def experts_one_by_one(self) -> bool:
        """As a run computes them in 4 bits."""
        return self.config.quantization.experts == "4bit"

    @property
    def keeps_inputs_on_host(self) -> bool:
        training = self.config.training
        return self.device == "cuda" and training.gradient_checkpointing and training.offload_inputs

    @property
    def accumulates(self) -> bool:
        """True when gradients of an earlier micro-batch are there already."""
        return self.config.training.effective_batch > self.micro_batch


@dataclass(frozen=True)
class Outcome:
    """The peak of a step beyond what stays: bytes by part, and the operation."""

    activations: int
    step_temporary: int
    gradients: int
    operation: str

    @property
    def total(self) -> int:
        return self.activations + self.step_temporary + self.gradients


Profile = dict[str, Peak]
"""Phase -> its peak. Phases: begin, forward first / last, loss, backward last / first, optimizer."""


def rehearse_job(job: RehearseJob, control: Control) -> Iterator[Event]:
    """Rehearse one step; result: the estimate as JSON, its source "rehearsal".

    Raises:
        EngineError: the model is unknown, or cannot be built without its own code.
        Cancelled: asked to stop.
    """
    config = config_io.from_dict(job.config)
    facts = catalog.facts_for(config.model)
    question = Question(facts, config, **job.options)
    yield PhaseChanged("preparing", f"Rehearsing one step of {facts.name} without its weights")
    found = yield from _with_progress(question, control)
    yield RunFinished(found.to_json())


def rehearse(
    question: Question, check: Callable[[], None] | None = None, report: Report | None = None
) -> Estimate:
    """The estimate with the numbers of a rehearsed step, from the cache where it was rehearsed before.

    `check` is called at every operation and may raise to stop it; `report(done, total)` counts traced models.
    """
    outcomes = _cached(question) or _store(question, trace(question, check or (lambda: None), report))
    _measure_line(question, check or (lambda: None))
    base = closed_form.estimate(
        question.facts,
        question.config,
        seq_len=question.seq_len,
        micro_batch=question.micro_batch,
        device=question.device,
        upcast_unquantized=question.upcast_unquantized,
        context=context_of(question.gpu),
    )
    moving = {side: {name: getattr(one, name) for name in MOVING} for side, one in outcomes.items()}
    return closed_form.rehearsed(base, moving, {side: one.operation for side, one in outcomes.items()})


def _measure_line(question: Question, check: Callable[[], None]) -> None:
    """Rehearse a class without a formula of its own at three lengths, once for each way to train it."""
    facts, config = question.facts, question.config
    if generic.is_measured(facts, config, question.device):
        return
    points: dict[str, list[generic.Point]] = {side: [] for side in SIDES}
    longest = min(LINE_LENGTHS[-1], facts.max_positions or LINE_LENGTHS[-1])
    waiting = [length * longest // LINE_LENGTHS[-1] for length in LINE_LENGTHS]
    while waiting:
        seq_len, began = waiting.pop(0), time.process_time()
        one = replace(question, seq_len=seq_len, micro_batch=1)
        for side, outcome in (_cached(one) or _store(one, trace(one, check))).items():
            shape = closed_form.shape_of(config, one.seq_len, 1, question.device, False, side)
            counted = activations.counted_bytes(facts, config, shape).total
            gradients = activations.gradient_bytes(facts, config, shape)
            moved = outcome.activations + outcome.step_temporary + outcome.gradients - gradients
            kept = min(outcome.activations, moved)
            points[side].append(generic.Point(counted, kept, moved - kept))
        if time.process_time() - began > SLOW_SECONDS:
            waiting = [seq_len // 2] if len(points["double_quant"]) == 1 else []
    generic.keep(facts, config, question.device, points)


def trace(
    question: Question, check: Callable[[], None], report: Report | None = None, *, is_whole: bool = False
) -> dict[str, Outcome]:
    """The peak on both sides. `is_whole`: run all layers instead of extrapolating."""
    config = symbolic.full_config(question.facts)
    kinds = symbolic.layer_kinds(config, question.facts.blocks)
    kinds, base = symbolic.base_layers(kinds, question.config.training)
    kept = [kinds[number] for number in base]
    missing = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > kept.count(kind)]
    if is_whole or not missing:
        plans: list[Sequence[int] | None] = [None]
        missing = []
    else:
        plans = [base, *(symbolic.with_one_more(base, kinds, kind) for kind in missing)]
    profiles = []
    for index, plan in enumerate(plans):
        if report is not None:
            report(index, len(plans))
        profiles.append(_profiles(question, config, plan, check))
    more = [kinds.count(kind) - kept.count(kind) for kind in missing]
    return {side: _outcome([p[side] for p in profiles], more) for side in SIDES}


def _outcome(profiles: Sequence[Profile], more: Sequence[int]) -> Outcome:
    """The highest phase after adding `more[i]` layers of kind i: straight lines through the traced points."""
    best: Outcome | None = None
    base = profiles[0]
    for phase, peak in base.items():
        parts = dict(peak.parts)
        if len(profiles) > 1:
            for grown, count in zip(profiles[1:], more, strict=True):
                for name in MOVING:
                    parts[name] += count * (grown[phase].parts[name] - peak.parts[name])
        found = Outcome(**parts, operation=_words(phase, peak.operation))
        if best is None or found.total > best.total:
            best = found
    assert best is not None
    return best


def _words(phase: str, operation: str) -> str:
    name = operation.removesuffix(".default").replace("aten.", "").replace("bitsandbytes.", "")
    return f"{phase}: {name}"


def _profiles(
    question: Question, config: Any, layers: Sequence[int] | None, check: Callable[[], None]
) -> dict[str, Profile]:
    """Run one step of a model with `config`, or of those of its `layers`, and return the peak of each phase with and without double quantization."""
    model = _model_of(question, config, layers)
    rows, length = question.micro_batch, question.seq_len
    ledger = Ledger(
        device=question.device,
        is_packed=question.config.data.packing,
        trained_tokens=rows * (length - 1),
        experts=question.facts.experts or 0,
        check=check,
        rules=RULES,
    )
    with quiet(), symbolic.values_unknown(), FakeTensorMode():
        symbolic.give_storage(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = _optimizer(question, trained)
        if question.accumulates:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        if question.keeps_inputs_on_host:
            recomputing.keep_inputs(model, ledger.inputs_on_host)
        count = _mark_phases(model, question.facts, ledger)
        ledger.know([*model.parameters(), *symbolic.quantization_states(model)])
        with ledger:
            gradients, state = _step(question, model, optimizer, trained, ledger)
    return {
        side: _named(ledger.peaks(gradients, state, has_nested=is_double), count)
        for side, is_double in SIDES.items()
    }


def _model_of(question: Question, config: Any, layers: Sequence[int] | None) -> Any:
    return symbolic.build(
        config,
        question.config,
        compute_dtype=question.compute_dtype,
        upcast_unquantized=question.upcast_unquantized,
        blocks=question.facts.blocks,
        layers=layers,
        unreached=frozenset(one.path for one in question.facts.linears if not one.is_reached),
        experts_one_by_one=question.experts_one_by_one,
        new_rows=question.facts.new_rows,
    )


def _step(
    question: Question, model: Any, optimizer: Any, trained: list[Any], ledger: Ledger
) -> tuple[frozenset[int], frozenset[int]]:
    batch = _batch(question)
    if question.accumulates:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
    summed = losses.summed_loss(model, batch, kind=question.config.training.loss)
    (summed / 1).backward()
    ledger.phase = "optimizer"
    gradients = ledger.numbers_of(p.grad for p in trained if p.grad is not None)
    limit = question.config.training.max_grad_norm
    if limit:
        torch.nn.utils.clip_grad_norm_(trained, limit)
    optim.step(optimizer)
    kept = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return gradients, ledger.numbers_of(kept)


def _batch(question: Question) -> Batch:
    """Rows of full length, every token trained; packed ones are taken to hold several rows."""
    rows, length = question.micro_batch, question.seq_len
    ids = torch.zeros(rows, length, dtype=torch.int64)
    positions = torch.zeros(rows, length, dtype=torch.int64) if question.config.data.packing else None
    return Batch(ids, torch.full_like(ids, IGNORED), None, positions, rows * length)


def _optimizer(question: Question, trained: list[Any]) -> Any:
    """The optimizer that a run would build, its code tables as fake tensors."""
    with unset_fake_temporarily():
        optimizer = optim.build(question.config.training, trained)
    tables = getattr(optimizer, "name2qmap", None)
    if tables is not None:
        optimizer.name2qmap = {name: torch.empty(table.shape) for name, table in tables.items()}
    return optimizer


def _mark_phases(model: Any, facts: ModelFacts, ledger: Ledger) -> int:
    """Tell the ledger where the step is: forward 0 ... forward L-1, loss, backward L-1 ... backward 0. Returns L."""
    layers = model.get_base_model().get_submodule(facts.blocks) if facts.blocks else ()
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(_before(index, ledger))
        layer.register_forward_hook(_after(index, len(layers), ledger))
    return len(layers)


def _before(index: int, ledger: Ledger) -> Callable[..., None]:
    def before(module: Any, inputs: Any) -> None:
        is_recomputing = ledger.phase == "loss" or ledger.phase.startswith("backward")
        ledger.phase = f"{'backward' if is_recomputing else 'forward'} {index}"

    return before


def _after(index: int, count: int, ledger: Ledger) -> Callable[..., None]:
    def reached(gradient: torch.Tensor) -> None:
        ledger.phase = f"backward {index}"

    def after(module: Any, inputs: Any, output: Any) -> None:
        if ledger.phase.startswith("backward"):
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(reached)
        if index == count - 1:
            ledger.keep_alive_now()
            ledger.phase = "loss"

    return after


def _named(peaks: Mapping[str, Peak], layers: int) -> Profile:
    """Phases by names that do not depend on the number of layers; between its ends a pass is a straight line."""
    last = layers - 1
    names = {
        "begin": "forward", "first layer": "forward 0", "last layer": f"forward {last}", "loss": "loss",
        "backward pass of the last layer": f"backward {last}", "backward pass of the first layer": "backward 0",
        "optimizer": "optimizer",
    }  # fmt: skip
    empty = dict.fromkeys(MOVING, 0)
    return {name: peaks.get(phase, Peak(0, dict(empty), "")) for name, phase in names.items()}


def _with_progress(question: Question, control: Control) -> Generator[Event, None, Estimate]:
    def work(emit: Emit) -> Estimate:
        return rehearse(
            question, control.check, lambda done, total: emit(Progressed("preparing", done, total, "steps"))
        )

    return (yield from events_while(work))


# ------------------------------------------------------------ cache


def _cache_file(question: Question) -> Path:
    config = question.config
    settings = {
        "seq_len": question.seq_len,
        "micro_batch": question.micro_batch,
        "device": question.device,
        "upcast": question.upcast_unquantized,
        "experts": question.experts_one_by_one,
        "accumulates": question.accumulates,
        "packing": config.data.packing,
        "lora": vars(config.lora),
        "optimizer": config.training.optimizer,
        "checkpointing": config.training.gradient_checkpointing,
        "checkpoint_every": config.training.checkpoint_every or 1,
        "offload_inputs": question.keeps_inputs_on_host,
        "loss": config.training.loss,
        "clips": bool(config.training.max_grad_norm),
        "schema": SCHEMA,
        "versions": [installed.version(n) for n in ("torch", "transformers", "peft", "bitsandbytes")],
    }
    key = json.dumps(symbolic.settings_key(question.facts, settings), sort_keys=True, default=str)
    return paths.cache_dir() / "rehearsals" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _cached(question: Question) -> dict[str, Outcome] | None:
    try:
        plain = parsing.from_json(_cache_file(question).read_text(encoding="utf-8"))
        return {side: Outcome(**plain[side]) for side in SIDES}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(question: Question, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """Keep the outcome."""
    kept.keep(_cache_file(question), {side: vars(one) for side, one in outcomes.items()})
    return outcomes


__all__ = ["EngineError", "Outcome", "Question", "rehearse", "rehearse_job", "trace"]
