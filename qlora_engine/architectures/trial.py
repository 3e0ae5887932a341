"""Trains one model type as a tiny random model with the program's own code, and says what came of it. Imports the ML stack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, TrainingSettings
from qlora_engine.control import Control
from qlora_engine.data import batches
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.device import plan_device
from qlora_engine.errors import EngineError
from qlora_engine.models import class_child, loading, spec, structure, tiny
from qlora_engine.models.quiet import quiet
from qlora_engine.training import loss as losses
from qlora_engine.training import optim, recomputing, schedule, steps
from qlora_engine.training.fast.install import FastPaths

STEPS = 3
TOKENS = 24
LEARNING_RATE = 1e-2
SAME_LOGITS = 1e-4
TEMPLATE = "{% for message in messages %}{{ message['content'] + ' 2 ' }}{% endfor %}"


@dataclass(frozen=True)
class Trial:
    """What came of a type: `trains`, or `reason` in one sentence. `notes` say what is particular about it."""

    model_type: str
    trains: bool
    reason: str = ""
    notes: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    parameters: int = 0
    packing_leak: float | None = None
    seconds: float = 0.0


class DoesNotTrain(Exception):  # noqa: N818 - an answer, not an error
    """The type cannot be trained here; the text is the reason."""


def attempt(model_type: str, folder: Path) -> Trial:
    """Make, load in 4 bits, adapt and train a tiny model of that type in `folder`. Whatever goes wrong is the answer."""
    began = time.perf_counter()
    try:
        make(model_type, folder)
        facts = spec.facts_of_folder(folder)
        parts = prepare(folder)
        require_causal(parts.model)
        found = train(parts, STEPS)
        if not found[-1] < found[0]:
            raise DoesNotTrain(
                f"its loss does not fall: {found[0]:.3f} and {found[-1]:.3f} after {STEPS} steps"
            )
    except DoesNotTrain as answer:
        return Trial(model_type, trains=False, reason=str(answer), seconds=time.perf_counter() - began)
    except EngineError as error:
        return Trial(model_type, trains=False, reason=error.message, seconds=time.perf_counter() - began)
    except Exception as error:  # noqa: BLE001 - any error of a class is the answer to the question
        reason = f"{type(error).__name__}: {class_child.first_line(error)}"
        return Trial(model_type, trains=False, reason=reason[:300], seconds=time.perf_counter() - began)
    return Trial(
        model_type,
        trains=True,
        notes=notes_of(facts),
        losses=tuple(found),
        parameters=facts.parameters,
        packing_leak=packing_leak(parts.model),
        seconds=time.perf_counter() - began,
    )


def make(model_type: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny random model of that type in `folder`, with a tokenizer of numbered words.

    Raises:
        DoesNotTrain: its class cannot be built from scaled defaults.
    """
    try:
        config = tiny.tiny_config(model_type, **overrides)
    except Exception as error:
        raise DoesNotTrain(
            f"its configuration cannot be scaled down: {class_child.first_line(error)}"
        ) from error
    return save(config, folder, seed)


def save(config: Any, folder: Path, seed: int = 0) -> Path:
    """Save a random model of that config, with its tokenizer."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = tiny.with_values(_of(config))
        except Exception as error:
            raise DoesNotTrain(f"its class cannot be built: {class_child.first_line(error)}") from error
        model.save_pretrained(folder)
        tokenizer(int(config.get_text_config(decoder=True).vocab_size)).save_pretrained(folder)
    return folder


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word a token: `0`, `1`, `2` ..."""
    words = {str(number): number for number in range(min(vocabulary, tiny.VOCABULARY))}
    made = Tokenizer(models.WordLevel(words, unk_token="3"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="1", eos_token="2", pad_token="0", unk_token="3"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def prepare(folder: Path, lora: LoraSettings | None = None, seed: int = 0) -> SimpleNamespace:
    """Base in 4 bits with its adapters, optimizer and schedule: what a run steps with."""
    plan = plan_device(ModelSettings(device="cpu"))
    loaded = loading.load_quantized(folder, QuantizationSettings(), plan)
    return equip(loaded, plan, lora, seed, folder)


def equip(
    loaded: Any, plan: Any, lora: LoraSettings | None = None, seed: int = 0, folder: Path | None = None
) -> SimpleNamespace:
    """Adapters, optimizer and schedule for a loaded base."""
    model, attached = adapters.attach(loaded.model, lora or LoraSettings(rank=8, dropout=0.0), seed=seed)
    model.train()
    base = model.get_base_model()
    if base.supports_gradient_checkpointing:
        recomputing.enable(base)
    settings = TrainingSettings(optimizer="adamw_torch_fused", learning_rate=LEARNING_RATE, max_steps=STEPS)
    optimizer = optim.build(settings, [p for p in model.parameters() if p.requires_grad])
    planned = schedule.plan(settings, 1, batches.order)
    parts = SimpleNamespace(
        model=model, plan=plan, optimizer=optimizer, attached=attached, loaded=loaded, pad_token_id=0,
        scheduler=schedule.learning_rates(settings, optimizer, planned), loss_kind="chunked", router=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False), config=SimpleNamespace(training=settings), folder=folder,
        fast=FastPaths(),
    )  # fmt: skip
    try:
        if not losses.is_chunkable(model, batches.collate([memorised()], 0)):
            parts.loss_kind = "full"
    except ValueError:
        parts.loss_kind = "full"
    return parts


def memorised(tokens: int = TOKENS, seed: int = 0) -> TokenRow:
    """A row to learn by heart."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, tiny.VOCABULARY, (tokens,), generator=generator).tolist()
    return TokenRow(ids, [True] * tokens, 0, (tokens,))


def train(parts: SimpleNamespace, count: int) -> list[float]:
    """Losses of `count` steps on the one row, and the loss after them."""
    row = memorised()
    found = [steps.optimizer_step(parts, [row], 1, Control()).loss for _ in range(count)]
    batch = batches.collate([row], parts.pad_token_id)
    parts.model.eval()
    with torch.no_grad():
        after = float(losses.summed_loss(parts.model, batch, kind=parts.loss_kind)) / (TOKENS - 1)
    parts.model.train()
    return [*found, after]


def require_causal(model: Any) -> None:
    """A token may not see those after it.

    Raises:
        DoesNotTrain: it does.
    """
    ids = torch.tensor([memorised().input_ids])
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 7) % tiny.VOCABULARY
    first, second = (logits_of(model, one)[0, :-1] for one in (ids, other))
    if float((first - second).abs().max()) > SAME_LOGITS * max(1.0, float(first.abs().max())):
        raise DoesNotTrain(
            "a token sees those after it, so there is nothing to predict: it is an encoder, or built as one"
        )


def packing_leak(model: Any) -> float | None:
    """How much a row's logits change, at most, when another row is packed before it; None where it does not take
    restarting positions at all. Relative to the largest logit."""
    rows = [memorised(9, seed=1), memorised(TOKENS, seed=2)]
    packed = batches.collate(
        [
            TokenRow(
                rows[0].input_ids + rows[1].input_ids,
                rows[0].trained + rows[1].trained,
                0,
                tuple(len(r.input_ids) for r in rows),
            )
        ],
        0,
    )
    try:
        together = logits_of(model, packed.input_ids, position_ids=packed.position_ids)[0, 9:]
        alone = logits_of(model, torch.tensor([rows[1].input_ids]))[0]
    except Exception:  # noqa: BLE001 - a class that cannot take them cannot pack
        return None
    return float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))


def logits_of(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """(batch, length, vocabulary), fp32, without dropout."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return losses.causal_of(model)(input_ids=ids, use_cache=False, **inputs).logits.float()
    finally:
        model.train(was_training)


def logits_of_base(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same without the adapters."""
    with model.disable_adapter():
        return logits_of(model, ids)


def notes_of(facts: spec.ModelFacts) -> tuple[str, ...]:
    """What of it stays in 16 bits besides ends and norms, and what it brings of its own."""
    found = []
    kept: dict[str, list[str]] = {}
    for tensor in facts.unquantized:
        if tensor.why and tensor.role != "head":
            kept.setdefault(tensor.why, []).append(tensor.name.rsplit(".", 2)[-2])
    for why, names in kept.items():
        found.append(f"{', '.join(sorted(set(names)))} in 16 bits: {why}")
    still = sorted({one.name for one in facts.linears if not one.is_reached})
    if still:
        found.append(f"{', '.join(still)} without adapters: {structure.UNREACHED}")
    if any(tensor.role == "kernel" for tensor in facts.unquantized):
        found.append("convolution kernels in 16 bits")
    if facts.stacked:
        found.append("experts")
    return tuple(found)


def _of(config: Any) -> Any:
    """The model that files of such a config hold: with its tower, where it also sees."""
    if (
        config.get_text_config(decoder=True) is not config
        and type(config) in AutoModelForImageTextToText._model_mapping
    ):
        return AutoModelForImageTextToText.from_config(config)
    return AutoModelForCausalLM.from_config(config)


def lines(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """(type, what came of it) for a table."""
    return [
        (
            one.model_type,
            "trains" + (f" ({'; '.join(one.notes)})" if one.notes else "") if one.trains else one.reason,
        )
        for one in trials
    ]
