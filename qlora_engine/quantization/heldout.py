"""Held-out loss of each way to store the weights, against the unquantized model. Imports the ML stack.

One model is in memory. For each variant its linear weights are read again from the files, quantized, brought back and
put in place: a 4-bit layer computes with exactly these numbers, since its product dequantizes the whole weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from qlora_engine.control import Control
from qlora_engine.data.batches import IGNORED, Batch, collate
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.models import loading, spec
from qlora_engine.models.quiet import quiet
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.quantization.report import Score, paired
from qlora_engine.quantization.roundtrip import round_trip
from qlora_engine.quantization.variants import Variant
from qlora_engine.quantization.weights import Place
from qlora_engine.training import loss as losses

CHUNK_TOKENS = 256
"""Tokens whose logits are in memory at once, twice: the unquantized model's and the variant's."""
KEPT_BYTES = 512 << 20
"""What is kept of the unquantized model to compare with; rows are taken until they need so much."""
Done = Callable[[int], None]


@dataclass(frozen=True)
class RowScore:
    """Sums over the trained tokens of one row."""

    loss: float
    divergence: float
    agreeing: int


class Subject:
    """The model whose weights are exchanged, on `plan`'s device in its compute type.

    Raises:
        EngineError: it cannot be loaded.
    """

    def __init__(self, facts: spec.ModelFacts, plan: DevicePlan, *, trust_remote_code: bool = False) -> None:
        self._plan = plan
        self._model = _load(facts, plan, trust_remote_code=trust_remote_code)
        self._kind = "chunked"

    def look_at(self, row: Any) -> None:
        """Find out, on one row, whether logits can be made of hidden states as the training loss makes them."""
        try:
            is_same = losses.is_chunkable(self._model, self._batch(row))
        except ValueError:
            is_same = False
        self._kind = "chunked" if is_same else "full"

    def store_as(self, variant: Variant, places: Sequence[Place], control: Control) -> None:
        """Put what `variant` keeps of every weight in its place."""
        for place in places:
            control.check()
            weight = self._model.get_submodule(place.module).weight
            stored = place.read().to(self._plan.name, self._plan.torch_dtype)
            weight.data.copy_(round_trip(stored, variant).weight)

    @torch.no_grad()
    def states(self, row: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What the predictions of a row's T trained tokens are made of, hidden states (T, H) or where that is not
        possible the logits (T, V); and those tokens (T,)."""
        batch = self._batch(row)
        if self._kind == "chunked":
            return losses.predicting_states(self._model, batch)
        targets = batch.labels[0, 1:]
        trained = (targets != IGNORED).nonzero()[:, 0]
        logits = self._model(input_ids=batch.input_ids, logits_to_keep=trained, use_cache=False).logits[0]
        return logits, targets[trained]

    @torch.no_grad()
    def predictions(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (T, V), fp32, of `states`."""
        states = states.to(self._plan.name)
        logits = losses.logits_of(self._model, states) if self._kind == "chunked" else states.float()
        return logits.log_softmax(-1)

    def _batch(self, row: Any) -> Batch:
        return collate([row], 0).to(self._plan.name)


def score_unquantized(
    subject: Subject,
    rows: Sequence[Any],
    control: Control,
    done: Done,
    *,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[torch.Tensor], Score]:
    """States of each row to compare with, on the CPU, and the score; of fewer rows where time or memory run out."""
    began, room = clock(), KEPT_BYTES
    kept: list[torch.Tensor] = []
    found: list[float] = []
    tokens = 0
    for number, row in enumerate(rows, start=1):
        control.check()
        if kept and (room < 0 or (seconds is not None and clock() - began > seconds)):
            break
        states, targets = subject.states(row)
        found.append(sum(_nll(subject, part, wanted) for part, wanted in _chunks(states, targets)))
        kept.append(states.cpu())
        room -= kept[-1].nbytes
        tokens += len(targets)
        done(number)
    return kept, Score(sum(found) / tokens, tuple(found))


def score_stored(
    subject: Subject, rows: Sequence[Any], kept: Sequence[torch.Tensor], reference: Score, control: Control, done: Done
) -> Score:  # fmt: skip
    """The score of the weights as they are stored now, against the unquantized model's states."""
    found: list[RowScore] = []
    tokens: list[int] = []
    for number, (row, before) in enumerate(zip(rows, kept, strict=True), start=1):
        control.check()
        states, targets = subject.states(row)
        found.append(_compare(subject, before, states, targets))
        tokens.append(len(targets))
        done(number)
    total = sum(tokens)
    row_losses = tuple(row.loss for row in found)
    extra, extra_error = paired(row_losses, reference.row_losses, tokens)
    return Score(
        loss=sum(row_losses) / total,
        row_losses=row_losses,
        extra=extra,
        extra_error=extra_error,
        kl=sum(row.divergence for row in found) / total,
        agreement=sum(row.agreeing for row in found) / total,
    )


def _compare(subject: Subject, before: torch.Tensor, states: torch.Tensor, targets: torch.Tensor) -> RowScore:
    nll, divergence, agreeing = 0.0, 0.0, 0
    for (was, _), (now, wanted) in zip(_chunks(before, targets), _chunks(states, targets), strict=True):
        expected, found = subject.predictions(was), subject.predictions(now)
        nll += float(functional.nll_loss(found, wanted, reduction="sum"))
        agreeing += int((expected.argmax(-1) == found.argmax(-1)).sum())
        divergence += float(functional.kl_div(found, expected, log_target=True, reduction="sum"))
    return RowScore(nll, divergence, agreeing)


def _nll(subject: Subject, states: torch.Tensor, targets: torch.Tensor) -> float:
    return float(functional.nll_loss(subject.predictions(states), targets, reduction="sum"))


def _chunks(states: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(targets), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        yield states[part], targets[part]


def missing_memory(facts: spec.ModelFacts, plan: DevicePlan) -> str:
    """Why the unquantized model cannot be in memory; empty when it can."""
    element = 4 if plan.torch_dtype_name == "float32" else 2
    needed = facts.parameters * element + 2 * CHUNK_TOKENS * facts.vocab_size * 4
    if plan.kind == "cuda":
        free = torch.cuda.mem_get_info(plan.index)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    if needed <= free:
        return ""
    return (
        f"the loss needs the unquantized model in memory, {needed / 2**30:.1f} GiB, and {plan.title} has "
        f"{free / 2**30:.1f} GiB free"
    )


def _load(facts: spec.ModelFacts, plan: DevicePlan, *, trust_remote_code: bool) -> Any:
    assert facts.path is not None
    loading.refuse_remote_code(facts, trust_remote_code)
    path = Path(facts.path)
    with quiet():
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                facts.path,
                dtype=plan.torch_dtype,
                device_map={"": plan.name},
                trust_remote_code=spec.brings_code(facts.config),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **loading.text_model_arguments(path, facts),
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise EngineError(
                "model.load", f"{path.name} could not be loaded: {str(error).strip().splitlines()[0][:200]}",
                "download the model again, or choose another", is_input_error=False,
            ) from error  # fmt: skip
    loading.require_complete(path, found)
    return model.requires_grad_(False).eval()
