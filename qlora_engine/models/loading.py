"""Loads a model folder in 4 bits on one device, and checks what was really built. Imports the ML stack."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_engine.config import QuantizationSettings
from qlora_engine.data.templates import template_end_ids
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.memory.experts import as_configured, moved_to_host
from qlora_engine.models import names, new_rows, packed_loading, packing, spec
from qlora_engine.models.built import LoadReport, inspect_loaded
from qlora_engine.models.experts.host import keep_on_host
from qlora_engine.models.experts.quantizer import FourBitConfig
from qlora_engine.models.fingerprint import base_sha256, fingerprint
from qlora_engine.models.four_bit import BLOCK, OddLinear4bit, constants_bytes
from qlora_engine.models.quiet import quiet
from qlora_engine.models.tokenizer_file import load_tokenizer
from qlora_engine.models.watching import Report, Watch
from qlora_engine.out_of_memory import is_out_of_memory

__all__ = [
    "LoadReport",
    "LoadedModel",
    "base_sha256",
    "constants_bytes",
    "end_token_ids",
    "fingerprint",
    "inspect_loaded",
    "load_quantized",
    "load_tokenizer",
    "require_memory",
    "text_model_arguments",
]

DEFAULT = QuantizationSettings()


@dataclass(frozen=True)
class LoadedModel:
    """A quantized base, its tokenizer, and the proof of what it is."""

    model: Any
    tokenizer: Any
    report: LoadReport


def load_quantized(
    path: Path,
    quantization: QuantizationSettings,
    plan: DevicePlan,
    *,
    trust_remote_code: bool = False,
    report_progress: Report | None = None,
    rows: int = 0,
    tokenizer: Any = None,
) -> LoadedModel:
    """Load and quantize to NF4 or FP4, block 64, on `plan`'s one device, with at least `rows` rows of the embeddings.
    `tokenizer`: the folder's, where it is loaded already.

    What is not quantized (embeddings, head, norms) stays in the compute type; nothing is cast up to fp32
    (CORRECTNESS 8) and nothing is placed on another device (CORRECTNESS 11).

    Raises:
        EngineError: it does not fit, is broken, brings code of its own, or was not built as asked.
        Cancelled: `report_progress` raised it.
    """
    facts = spec.facts_of_folder(path)
    refuse_remote_code(facts, trust_remote_code)
    packed = packing.packing_of(facts.config, path.name)
    quantization = as_stored(quantization, packed)
    require_memory(facts, plan, quantization)
    if tokenizer is None:
        tokenizer = load_tokenizer(path, trust_remote_code=spec.brings_code(facts.config))
    left = packed_loading.layers_in_16_bits(path) if packed and packed.is_used_as_it_is else frozenset()
    watch = Watch(report_progress)
    four_bit = _four_bit(quantization, plan, watch, left)
    model, found = _read(path, facts, packed, four_bit, plan, watch)
    require_complete(path, found)
    _make_ready(model, facts, quantization, plan, rows)
    ends = end_token_ids(model, tokenizer)
    report = inspect_loaded(model, ends, path, facts, quantization, plan)
    if packed is not None:
        report = replace(report, converted=packed.words(quantization.quant_type))
    return LoadedModel(model, tokenizer, report)


def _read(
    path: Path,
    facts: spec.ModelFacts,
    packed: packing.Packing | None,
    four_bit: Any,
    plan: DevicePlan,
    watch: Watch,
) -> tuple[Any, Mapping[str, Any]]:
    """The model in 4 bits, and what transformers says of its loading.

    Raises:
        EngineError: the folder is broken.
        Cancelled: `watch` was told so.
    """
    with quiet():
        try:
            return _from_pretrained(
                path, facts, packed,
                quantization_config=four_bit, dtype=plan.torch_dtype, device_map={"": plan.name}, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:
            if is_out_of_memory(error):
                raise
            watch.raise_if_cancelled()  # transformers wraps what is raised inside its loader
            raise EngineError(
                "model.load", f"{path.name} could not be loaded: {_short(error)}",
                "download the model again, or choose another", is_input_error=False,
            ) from error  # fmt: skip


def _make_ready(
    model: Any, facts: spec.ModelFacts, quantization: QuantizationSettings, plan: DevicePlan, rows: int
) -> None:
    """Nothing of the base is trained; new tokens have rows, and experts lie where they should."""
    model.config.quantization_config.told = None
    model.requires_grad_(False)
    model.unreached_linears = unreached_of(facts)
    keep_weights_as_they_are(model)
    if rows > facts.vocab_size:
        new_rows.grow(model, rows)
    if quantization.expert_placement == "host":
        keep_on_host(model, torch.device(plan.name))


def as_stored(quantization: QuantizationSettings, packed: packing.Packing | None) -> QuantizationSettings:
    """The settings that a base in bitsandbytes' 4 bits brings with it; of any other those that were asked for."""
    if packed is None or not packed.is_used_as_it_is:
        return quantization
    return replace(quantization, quant_type=packed.quant_type, double_quant=packed.is_double_quant)


def _from_pretrained(
    path: Path, facts: spec.ModelFacts, packed: packing.Packing | None, **arguments: Any
) -> tuple[Any, Mapping[str, Any]]:
    """(model, what the loader found) of a folder whose weights are plain, or come quantized."""
    arguments |= text_model_arguments(path, facts)
    runs_code = spec.brings_code(facts.config)
    if packed is None or runs_code:
        return AutoModelForCausalLM.from_pretrained(
            str(path), trust_remote_code=runs_code, local_files_only=True, use_safetensors=True, **arguments
        )
    config = names.without_packing(arguments.pop("config", None) or names.plain_config(path))
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    streams = arguments["quantization_config"].experts
    return packed_loading.model_of(kind, path, config, in_4_bits=True, streams=streams, **arguments)


def text_model_arguments(path: Path, facts: spec.ModelFacts | None = None) -> dict[str, Any]:
    """What `from_pretrained` needs besides the path to build only the language model of a model that also sees
    (Gemma 3, Mistral Small): its text config, and where its tensors lie. Empty for all others."""
    facts = facts or spec.facts_of_folder(path)
    if not isinstance(facts.config.get("text_config"), Mapping) or spec.brings_code(facts.config):
        return {}
    config = AutoConfig.from_pretrained(str(path), local_files_only=True).get_text_config(decoder=True)
    config.tie_word_embeddings = facts.is_tied
    mapping = {r"^language_model\.": "", r"^model\.language_model\.": "model."}
    place = names.language_prefix(names.skeleton(path))
    if "language_model" not in place:  # what others call it (SmolVLM: model.text_model)
        mapping[f"^{re.escape(place)}"] = "model."
    return {"config": config, "key_mapping": mapping}


def unreached_of(facts: spec.ModelFacts) -> frozenset[str]:
    """Patterns of the linear layers where an adapter would learn nothing (models.reach)."""
    return frozenset(linear.path for linear in facts.linears if not linear.is_reached)


def keep_weights_as_they_are(model: Any) -> None:
    """Have bitsandbytes compute on the CPU with the weights that it stored.

    On CPUs with AVX512-BF16 it would repack them: there its Linear4bit rewrites its weight in place at the first evaluation, computes in bf16 from then on, and its
    kernel passes no gradient: a run would go on and learn almost nothing (bitsandbytes 0.50, nn/modules.py, forward).
    Rows that are not whole blocks it reads with other rows' constants; such layers dequantize in a way of our own.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu" and module.in_features % BLOCK:
                module.__class__ = OddLinear4bit


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: of the generation config, the config, the tokenizer, and the end-of-turn
    token that the chat template writes (CORRECTNESS 15)."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config):
        ids = getattr(owner, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, list | tuple) else ({ids} if ids is not None else set())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return tuple(sorted({*(int(i) for i in found), *template_end_ids(tokenizer)}))


def require_memory(
    facts: spec.ModelFacts, plan: DevicePlan, quantization: QuantizationSettings = DEFAULT
) -> None:
    """Refuse before loading when even the quantized weights do not fit (CORRECTNESS 11).

    Raises:
        EngineError: they do not, with both numbers.
    """
    element = 4 if plan.torch_dtype_name == "float32" else 2
    facts = as_configured(facts, quantization)
    constants = 1 / 64 + 4 / (64 * 256) if quantization.double_quant else 4 / 64
    needed = facts.quantized_parameters * (0.5 + constants) + facts.unquantized_parameters * element
    if quantization.expert_placement == "host" and plan.kind == "cuda":
        needed -= sum(moved_to_host(facts, is_double_quant=quantization.double_quant))
    if plan.kind == "cuda":
        free, where = torch.cuda.mem_get_info(plan.index)[0], "the GPU"
    else:
        import psutil

        free, where = psutil.virtual_memory().available, "this computer"
    if needed > free:
        raise EngineError(
            "memory.too_small",
            f"the 4-bit weights of {facts.name} need {needed / 2**30:.2f} GiB, and {where} has {free / 2**30:.2f} GiB free",
            "close other programs, or choose a smaller model; nothing is put on another device silently",
        )


def _four_bit(
    quantization: QuantizationSettings, plan: DevicePlan, watch: Watch, left: frozenset[str]
) -> FourBitConfig:
    return FourBitConfig(
        leave=left,
        experts=quantization.experts == "4bit",
        on_host=quantization.expert_placement == "host",
        told=watch.layer_done,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=plan.torch_dtype,
    )


def require_complete(path: Path, found: Mapping[str, Any]) -> None:
    """transformers fills tensors that it does not find with random numbers; here that is an error."""
    lost = sorted(found.get("missing_keys", ()))
    if lost:
        raise EngineError(
            "model.incomplete",
            f"{len(lost)} tensors of the model are not in the files of {path.name}, {lost[0]} among them",
            "download the model again, or check that config.json belongs to these files",
        )


def refuse_remote_code(facts: spec.ModelFacts, trust_remote_code: bool) -> None:
    """Code is run only where `trust_remote_code` says so; else an EngineError names its files."""
    if trust_remote_code or not spec.brings_code(facts.config):
        return
    targets = (str(target) for target in dict(facts.config["auto_map"]).values())
    files = sorted({target.split(".", 1)[0] + ".py" for target in targets})
    raise EngineError(
        "model.remote_code",
        f"{facts.name} brings Python code of its own that would run on this machine: {', '.join(files)}",
        f"read it first in {facts.path}; if you trust its authors, set model.trust_remote_code to true",
    )


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
