"""Measures the two merges of a run against the live quantized model with its adapter, on held-out rows.

Imports the ML stack. Merging into the original weights gives the adapter a base it was not trained on; merging into the
dequantized weights keeps what quantization lost (CORRECTNESS 3). Which is better differs from run to run.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from qlora_engine import adapters, data
from qlora_engine.control import Control
from qlora_engine.data.batches import IGNORED, collate
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.errors import EngineError
from qlora_engine.export import enlarged, merge, whole_trip
from qlora_engine.export.quantized import quantized_paths, quantized_stacks
from qlora_engine.export.source import Source
from qlora_engine.models import loading, names, spec
from qlora_engine.models.names import plain_class
from qlora_engine.models.quiet import quiet

Report = Callable[[str, int, int | None, str], None]
ROWS = 64
KEPT_BYTES = 512 << 20
"""The live model's predictions are kept in memory to compare with: rows are taken until they need so much."""
DECISIVE = 2.0
"""A difference of held-out losses counts from so many standard errors on."""


@dataclass(frozen=True)
class Score:
    """`loss`: nats per trained token. `kl`: mean divergence of this model's predictions from the live model's, in nats per
    token, `agreement`: how often their likeliest token is the same; both None for the live model itself."""

    loss: float
    kl: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`scores`: `live` and one for each merge. `recommended` is one of `merge.INTO`; `why` a sentence."""

    scores: Mapping[str, Score]
    rows: int
    tokens: int
    recommended: str
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def card_rows(self) -> dict[str, str]:
        """For the model card's table."""
        names = {
            "live": "the 4-bit model with its adapter",
            **{k: f"merged into the {k} weights" for k in merge.INTO},
        }
        told = {
            f"held-out: {names[name]}": f"loss {score.loss:.4f}"
            + (
                ""
                if score.kl is None
                else f", KL {score.kl:.5f}, same first choice {100 * (score.agreement or 0):.1f} %"
            )
            for name, score in self.scores.items()
        }
        return {
            **told,
            "measured on": f"{self.rows} held-out rows, {self.tokens} tokens",
            "recommended merge": self.why,
        }


def compare(
    source: Source,
    quantizer: merge.Quantizer,
    *,
    dtype: str,
    control: Control,
    report: Report,
) -> Comparison:
    """Score both merges, stored as `dtype`, on the run's held-out rows. One model is in memory at a time.

    Raises:
        EngineError: the run held nothing out, its data changed, or the model does not fit.
        Cancelled: asked to stop.
    """
    plan = plan_device(source.config.model, source.config.quantization.compute_dtype)
    rows = _rows(source, control)
    total = 3 * len(rows)
    live = _score_all(_live_model(source, plan), rows, plan, control, _counted(report, 0, total))
    kept = [prediction for prediction, _ in live]
    losses = {"live": [row_losses for _, row_losses in live]}
    scores = {"live": Score(_mean(losses["live"]))}
    for place, into in enumerate(merge.INTO, start=1):
        model = _merged_model(source, plan, quantizer if into == "dequantized" else None, dtype, control)
        found = _score_all(model, rows, plan, control, _counted(report, place * len(rows), total))
        del model
        gc.collect()
        losses[into] = [row_losses for _, row_losses in found]
        kl, agreement = _against(kept, [prediction for prediction, _ in found])
        scores[into] = Score(_mean(losses[into]), kl, agreement)
    recommended, why = recommend(scores, losses)
    tokens = sum(len(row) for row in losses["live"])
    return Comparison(scores, len(rows), tokens, recommended, why)


def recommend(scores: Mapping[str, Score], losses: Mapping[str, Sequence[torch.Tensor]]) -> tuple[str, str]:
    """The merge with the lower held-out loss where the rows leave no doubt, else the one nearer to the live model.

    `losses`: for each model the token losses of every row, in the same order. Doubt is judged over rows, whose tokens
    depend on each other.
    """
    differences = torch.tensor([
        float(a.sum() - b.sum()) for a, b in zip(losses["original"], losses["dequantized"], strict=True)
    ])  # fmt: skip
    mean = float(differences.mean())
    error = float(differences.std() / math.sqrt(len(differences))) if len(differences) > 1 else math.inf
    if abs(mean) > DECISIVE * error:
        better = "original" if mean < 0 else "dequantized"
        other = next(into for into in merge.INTO if into != better)
        return better, (
            f"into the {better} weights: its held-out loss is lower, {scores[better].loss:.4f} against "
            f"{scores[other].loss:.4f}"
        )
    better = min(merge.INTO, key=lambda into: scores[into].kl or 0.0)
    return better, (
        f"into the {better} weights: the losses are the same within their error, and it is nearer to the trained model "
        f"(KL {scores[better].kl:.5f})"
    )


def _rows(source: Source, control: Control) -> list[Any]:
    config = source.config
    tokenizer = loading.load_tokenizer(source.base_path)
    facts = spec.facts_of_folder(source.base_path)
    prepared = data.prepare(
        config.data,
        tokenizer,
        seed=config.training.seed,
        model_max_length=facts.max_positions,
        is_offline=True,
        control=control,
    )
    trained_on = (source.record.get("data") or {}).get("sha256")
    if trained_on and prepared.report.sha256 != trained_on:
        raise EngineError(
            "export.other_data", "the dataset has changed since the run, so its held-out rows are not known any more",
            "choose the merge yourself: original or dequantized",
        )  # fmt: skip
    kept: list[Any] = []
    room = KEPT_BYTES
    for row in prepared.held_out[:ROWS]:
        room -= 4 * facts.vocab_size * sum(row.trained[1:])
        if room < 0 and kept:
            break
        kept.append(row)
    if not kept:
        raise EngineError(
            "export.no_held_out", "the run held no rows out, so the two merges cannot be measured",
            "choose the merge yourself: original or dequantized",
        )  # fmt: skip
    return kept


def _live_model(source: Source, plan: DevicePlan) -> Any:
    loaded = loading.load_quantized(source.base_path, source.config.quantization, plan)
    with quiet():
        return adapters.reopen(loaded.model, source.adapter_dir).eval()


def _merged_model(
    source: Source,
    plan: DevicePlan,
    quantizer: merge.Quantizer | None,
    dtype: str,
    control: Control,
) -> Any:
    """The merge as it would be stored, computing in the type of the live model."""
    with quiet():
        model = plain_class(source.base_path).from_pretrained(
            str(source.base_path), dtype="auto", local_files_only=True
        )
    if source.embedding_rows is not None:
        enlarged.put_into(model, enlarged.trained_rows(source.adapter_dir))
    deltas = merge.read_deltas(source.adapter_dir, source.adapter_config, source.base_path)
    in_4_bits = (
        {*quantized_paths(source.base_path), *_stacks_in_4_bits(source)} if quantizer is not None else set()
    )
    for name in sorted({*deltas, *in_4_bits}):
        control.check()
        weight = model.get_parameter(name if name in _parameters(model) else f"{name}.weight")
        chosen = quantizer if name in in_4_bits else None
        if chosen is not None and name in names.transposed(source.base_path):
            weight.data, chosen = whole_trip.transposed(weight.data, chosen), None
        weight.data = _merged(weight.data, deltas.get(name), chosen).to(merge.DTYPES[dtype])
    return model.to(merge.DTYPES[dtype]).to(plan.name, plan.torch_dtype).eval()


def _merged(weight: torch.Tensor, delta: Any, quantizer: merge.Quantizer | None) -> torch.Tensor:
    """A weight, or a stack of experts, each of which is quantized alone."""
    if quantizer is not None:
        alone = weight.unbind(0) if weight.ndim == 3 else (weight,)
        weight = torch.stack([quantizer.round_trip(one) for one in alone]).reshape(weight.shape)
    return weight if delta is None else delta.merged_into(weight)


def _stacks_in_4_bits(source: Source) -> tuple[str, ...]:
    load = source.record.get("load_report") or {}
    return quantized_stacks(source.base_path) if load.get("expert_stacks") else ()


def _parameters(model: Any) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters())


def _score_all(
    model: Any, rows: Sequence[Any], plan: DevicePlan, control: Control, done: Callable[[int], None]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each row: log-probabilities (T, V) before each trained token, and those tokens' losses (T,); fp32, on the CPU."""
    found = []
    for number, row in enumerate(rows, start=1):
        control.check()
        found.append(_score(model, row, plan))
        done(number)
    return found


@torch.no_grad()
def _score(model: Any, row: Any, plan: DevicePlan) -> tuple[torch.Tensor, torch.Tensor]:
    batch = collate([row], 0).to(plan.name)
    targets = batch.labels[0, 1:]
    places = (targets != IGNORED).nonzero()[:, 0]
    logits = model(input_ids=batch.input_ids, logits_to_keep=places, use_cache=False).logits[0]
    predicted = logits.float().log_softmax(-1).cpu()
    wanted = targets[places].cpu()
    return predicted, functional.nll_loss(predicted, wanted, reduction="none")


def _against(kept: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Mean KL divergence from `kept`, in nats per token, and the share of tokens whose likeliest is the same."""
    divergence, same, tokens = 0.0, 0, 0
    for live, merged in zip(kept, found, strict=True):
        divergence += float(functional.kl_div(merged, live, log_target=True, reduction="sum"))
        same += int((live.argmax(-1) == merged.argmax(-1)).sum())
        tokens += len(live)
    return divergence / tokens, same / tokens


def _mean(losses: Sequence[torch.Tensor]) -> float:
    return float(torch.cat(list(losses)).double().mean())


def _counted(report: Report, before: int, total: int) -> Callable[[int], None]:
    return lambda number: report("evaluating", before + number, total, "rows")
