"""What must hold of every model type that trains, each proof by another route than the code it is about."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bitsandbytes.nn import Params4bit
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from qlora_engine import adapters, config_io
from qlora_engine.architectures import trial
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.export import writers
from qlora_engine.export.journal import Journal
from qlora_engine.export.reference import adapter_fit
from qlora_engine.export.source import Source
from qlora_engine.memory.estimate import estimate
from qlora_engine.models import four_bit, names, spec
from qlora_engine.models.experts.stack import Stacked4bit
from qlora_engine.models.quiet import quiet
from qlora_engine.training import checkpoint

SAME = 1e-4


class Broken(AssertionError):  # noqa: N818 - what the proof is
    """A proof that fails; the text says which and by how much."""


def prove(kind: str, folder: Path) -> dict[str, float]:
    """All proofs of one type in `folder`; the numbers that were measured.

    Raises:
        DoesNotTrain: the type does not train here at all.
        Broken: a proof fails.
    """
    base = trial.make(kind, folder / "base")
    parts = trial.prepare(base)
    trial.require_causal(parts.model)
    static = static_bytes(parts, base)
    found = trained_and_resumed(parts, folder)
    told = trial.logits_of(parts.model, prompt())
    plain = trial.logits_of_base(parts.model, prompt())
    acted = distance(told, plain)
    require(acted > 10 * SAME, f"training changed the logits by {acted:.1e} only")
    adapter = saved_adapter(parts, folder / "adapter")
    only_language(parts, base, adapter)
    tuned, untuned = reloaded(parts, base, adapter)
    require(distance(tuned, told) <= SAME, f"the adapter loaded plainly is {distance(tuned, told):.1e} away")
    require(
        distance(untuned, plain) <= SAME, f"the base loaded plainly is {distance(untuned, plain):.1e} away"
    )
    zeroed, _ = reloaded(parts, base, with_zeros(adapter, folder / "zeroed"), is_zeroed=True)
    require(distance(zeroed, told) > SAME, "an adapter of zeros passes for the trained one")
    merged = merged_logits(parts, base, adapter, folder / "merged")
    require(distance(merged, told) <= SAME, f"the merged model is {distance(merged, told):.1e} away")
    return {
        "static bytes": static,
        "loss before": found[0],
        "loss after": found[-1],
        "adapter acts": acted,
        "adapter": distance(tuned, told),
        "merged": distance(merged, told),
    }


def require(holds: bool, words: str) -> None:
    if not holds:
        raise Broken(words)


def prompt() -> torch.Tensor:
    return torch.tensor([trial.memorised().input_ids])


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def trained_and_resumed(parts: SimpleNamespace, folder: Path) -> list[float]:
    """Three steps straight, and one step, a checkpoint, everything anew and two steps: the same bits."""
    place = SimpleNamespace(path=folder, checkpoints_dir=folder / "checkpoints", record=dict)
    first = trial.train(parts, 1)
    made = {"settings": config_io.to_dict(TrainingConfig())}
    state = checkpoint.TrainState(step=1)
    saved = checkpoint.save(
        place,
        parts.model,
        parts.optimizer,
        parts.scheduler,
        state,
        parts.scaler,
        made,
    )
    straight = [*first[:1], *trial.train(parts, 2)]
    require(straight[-1] < straight[0], f"the loss does not fall: {straight}")
    wanted = weights(parts.model)
    parts.model.base_model.unload()
    loaded = SimpleNamespace(model=parts.loaded.model, report=parts.loaded.report)
    again = trial.equip(loaded, parts.plan, seed=7, folder=parts.folder)
    checkpoint.load(saved, again.model, again.optimizer, again.scheduler, again.scaler)
    trial.train(again, 2)
    found = weights(again.model)
    same = all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    require(
        same and found.keys() == wanted.keys(), "a resumed run differs from one that went straight through"
    )
    vars(parts).update(vars(again))
    return straight


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def static_bytes(parts: SimpleNamespace, base: Path) -> int:
    """What the estimate says stays is what was built, byte for byte."""
    config = with_value(TrainingConfig(), "lora.rank", 8)
    facts = spec.facts_of_folder(base)
    told = estimate(
        facts, config, seq_len=64, micro_batch=1, device="cpu", wants_advice=False
    ).double_quant.parts
    built = storages(parts.model, has_buffers=facts.source == "class")
    for name, size in built.items():
        require(told[name] == size, f"{name}: {told[name]:,} bytes told, {size:,} built")
    return sum(built.values())


def storages(model: Any, *, has_buffers: bool) -> dict[str, int]:
    """Bytes of distinct storages by part, read off the built model; buffers count among what is not quantized."""
    found: dict[str, dict[int, int]] = {
        "quantized_weights": {}, "quantization_constants": {}, "adapters": {}, "unquantized_weights": {},
    }  # fmt: skip

    def add(part: str, tensor: torch.Tensor) -> None:
        found[part][tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()

    for name, parameter in model.named_parameters():
        if isinstance(parameter, Stacked4bit):
            add("quantized_weights", parameter)
            for constant in (
                *parameter.stored.tensors()[1:],
                *(c for c in parameter.form.codes if c is not None),
            ):
                add("quantization_constants", constant)
        elif isinstance(parameter, Params4bit):
            add("quantized_weights", parameter)
            for constant in constants(parameter.quant_state):
                add("quantization_constants", constant)
        else:
            add("adapters" if "lora_" in name else "unquantized_weights", parameter)
    if has_buffers:
        for _, buffer in model.named_buffers():
            add("unquantized_weights", buffer)
    return {part: sum(sizes.values()) for part, sizes in found.items()}


def constants(state: Any) -> list[torch.Tensor]:
    kept = [state.absmax, state.code]
    return [*kept, state.state2.absmax, state.state2.code, state.offset] if state.nested else kept


def saved_adapter(parts: SimpleNamespace, folder: Path) -> Path:
    adapters.save(parts.model, folder, parts.folder)
    return folder


def with_zeros(adapter: Path, folder: Path) -> Path:
    """The adapter with every B set to zero."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def reloaded(
    parts: SimpleNamespace, base: Path, adapter: Path, *, is_zeroed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with and without the adapter of plain transformers and PEFT: the base in fp32, its weights brought to what the
    4-bit model computes with. No key of the file may be left over, none may be missing."""
    with quiet():
        model = names.plain_class(base).from_pretrained(str(base), dtype=torch.float32)
        bring_to_live(model, parts.model.get_base_model())
        tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    fit = adapter_fit(tuned, adapter)
    require(bool(fit.dead) is is_zeroed, f"the proof says: {fit}")
    require(not fit.left_over and not fit.missing, f"keys differ: {fit}")
    with tuned.disable_adapter():
        plain = plain_logits(tuned)
    return plain_logits(tuned), plain


def plain_logits(model: Any) -> torch.Tensor:
    """Of the model as a user loads it; where its class fails on any text (llama4's, in this transformers), of the language
    model inside it."""
    try:
        return trial.logits_of(model, prompt())
    except AttributeError:
        whole = model.get_base_model() if isinstance(model, PeftModel) else model
        return trial.logits_of(whole.language_model, prompt())


def bring_to_live(model: Any, live: Any) -> None:
    """Give the plain model the values that the 4-bit one computes with; where it also sees, its language model's."""
    plain = dict(model.named_parameters())
    here, there = (f"{names.decoder_path(one)}." for one in (live, model))
    transposed = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Conv1D)}
    for name, parameter in live.named_parameters():
        value = values_of(parameter)
        if value is not None:
            wanted = name.replace(".base_layer.", ".")
            found = wanted if wanted in plain else f"{there}{wanted.removeprefix(here)}"
            plain[found].data = value.T.contiguous() if found in transposed else value


def values_of(parameter: Any) -> torch.Tensor | None:
    """What a 4-bit parameter stands for, in fp32."""
    if isinstance(parameter, Stacked4bit):
        return torch.stack([parameter.expert(n) for n in range(parameter.experts)]).float()
    if isinstance(parameter, Params4bit):
        return four_bit.dequantized(parameter.data, parameter.quant_state).float()
    return None


def merged_logits(parts: SimpleNamespace, base: Path, adapter: Path, out: Path) -> torch.Tensor:
    """Logits of the merged model that the program writes into the dequantized weights, loaded by transformers alone."""
    record = {"load_report": asdict(parts.loaded.report), "model": {"name": str(base), "path": str(base)}}
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    source = Source(SimpleNamespace(run_id="tiny"), TrainingConfig(), record, adapter, config, base)
    journal = Journal(out, {})
    with quiet():
        writers.writer_of(source, "merged", writers.Choice(dtype="fp32", into="dequantized")).write(
            journal, Control(), lambda *_: None
        )
        journal.finish()
        model = names.plain_class(base).from_pretrained(str(journal.folder), dtype=torch.float32)
    same_tower(base, journal.folder)
    return plain_logits(model.eval())


def only_language(parts: SimpleNamespace, base: Path, adapter: Path) -> None:
    """Of a model that also sees, the language model alone is loaded, in 4 bits and trained."""
    if not names.is_part(base):
        return
    prefix = names.language_prefix(names.skeleton(base))
    require(bool(prefix), "the language model has no place of its own")
    keys = load_file(adapter / "adapter_model.safetensors")
    stray = [key for key in keys if not key.startswith(f"base_model.model.{prefix}")]
    require(not stray, f"an adapter beside the language model: {stray[:1]}")
    sizes = sum(p.numel() for p in names.skeleton(base).get_submodule(prefix[:-1]).parameters())
    live = sum(
        p.numel()
        for n, p in parts.model.named_parameters()
        if "lora_" not in n and not isinstance(p, Params4bit | Stacked4bit)
    )
    require(live < sizes, "more than the language model was loaded")


def same_tower(base: Path, merged: Path) -> None:
    """What is not the language model's is in the merged model as it was, and the class is the one that it was."""
    was, now = (json.loads((one / "config.json").read_text(encoding="utf-8")) for one in (base, merged))
    require(
        was.get("architectures") == now.get("architectures"), f"another class: {now.get('architectures')}"
    )
    if not names.is_part(base):
        return
    prefix = names.language_prefix(names.skeleton(base))
    places = names.places(base)
    before, after = (load_file(one / "model.safetensors") for one in (base, merged))
    require(before.keys() == after.keys(), "the merged model has other tensors than its base")
    tower = [
        key for key in before if key in places and not places[key].parameter.startswith((prefix, "lm_head"))
    ]
    require(bool(tower), "the base has no tower")
    changed = [key for key in tower if not torch.equal(before[key].float(), after[key].float())]
    require(not changed, f"the tower was changed: {changed[:1]}")


def finite(numbers: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in numbers.values())
