"""LoRA adapters on a 4-bit base, through PEFT. Imports the ML stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from qlora_engine.config import LoraSettings
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.models import names, new_rows, spec, weight_reader
from qlora_engine.models.experts import lora
from qlora_engine.models.four_bit import dequantized
from qlora_engine.models.packing import is_used_as_it_is
from qlora_engine.models.parts import pattern

ATTENTION_LEAVES = frozenset(
    {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "out_proj",
        "qkv_proj",
        "query_key_value",
        "Wqkv",
        "W_pack",
        "c_attn",
    }
)
ATTENTION_PARENTS = frozenset({"self_attn", "attn", "attention", "self_attention"})
PREFIX = "base_model.model."
FILE = "adapter_model.safetensors"
ADAPTER_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class AdapterReport:
    """What was attached, counted on the built model."""

    trainable_parameters: int
    adapter_bytes: int
    target_modules: tuple[str, ...]
    module_count: int
    dtype: str
    variant: str
    target_parameters: tuple[str, ...] = ()
    """The experts' stacked weights, as PEFT names them; empty unless experts are trained."""
    token_indices: Mapping[str, Sequence[int]] | None = None
    """Table -> its rows that are trained whole, as PEFT is told of them; None unless the embeddings were enlarged."""


def attach(
    model: Any, settings: LoraSettings, *, base_path: Path | None = None, seed: int = 0, new: int = 0
) -> tuple[PeftModel, AdapterReport]:
    """Freeze `model` and put LoRA on the chosen linear layers; of the embeddings the last `new` rows are trained whole.

    The adapters' first values depend on `seed` alone. `base_path` is the folder of the 16-bit weights, needed by
    LoftQ, which fits the adapters to what quantization lost and leaves the 4-bit base as it is.

    Raises:
        EngineError: no such module, or LoftQ without the 16-bit weights.
    """
    targets = resolve_targets(model, settings.targets)
    stacks = resolve_experts(model) if settings.experts else ()
    tokens = new_rows.indices(model, new)
    config = lora.teach(lora_config(settings, targets, stacks, tokens), model)
    lora.require_plain(config, model)
    with torch.random.fork_rng(devices=_cuda_devices(model)), lora.literally():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
        if settings.init == "loftq":
            _fit_loftq(peft_model, base_path)
    new_rows.teach(peft_model)
    _cast(peft_model, ADAPTER_DTYPES[settings.dtype])
    report = report_on(peft_model, settings, targets)
    return peft_model, replace(report, target_parameters=stacks, token_indices=tokens)


def lora_config(
    settings: LoraSettings, targets: tuple[str, ...], stacks: tuple[str, ...] = (),
    tokens: Mapping[str, Sequence[int]] | None = None,
) -> LoraConfig:  # fmt: skip
    """PEFT's configuration of an adapter on `targets`, on the experts' stacked weights of these names, and on such rows of
    these tables."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        target_parameters=list(stacks) or None,
        trainable_token_indices={name: list(rows) for name, rows in tokens.items()} if tokens else None,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )


def resolve_targets(model: Any, targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Names of the linear layers to adapt, sorted: the last part of their paths where it means no other layer; never the head.

    Raises:
        EngineError: a name that matches no linear layer, or nothing at all matched.
    """
    head = model.get_output_embeddings()
    every = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    linears = {name: m for name, m in every.items() if m is not head}
    if targets == "all-linear":
        chosen = {name for name, module in linears.items() if is_block_linear(model, name, module)}
    elif targets == "attention":
        chosen = {n for n, m in linears.items() if is_attention(n) and is_block_linear(model, n, m)}
    else:
        wanted = (targets,) if isinstance(targets, str) else targets
        chosen = {name for name in linears if _named(name, wanted)}
        _require_all_found(wanted, set(linears), {name for name, m in every.items() if m is head})
    if not chosen:
        raise EngineError(
            "lora.targets",
            f"no linear layer of this model matches {targets!r}",
            f"its layers: {', '.join(sorted({name.rsplit('.', 1)[-1] for name in linears}))}",
        )
    return shortest_names(chosen, {name for name, _ in model.named_modules()} - chosen)


def shortest_names(chosen: set[str], others: set[str]) -> tuple[str, ...]:
    """Names by which PEFT finds the modules `chosen` and none of `others`: the last part of a path, else what stands behind
    its last number, else all of it."""
    found = set()
    for name in chosen:
        parts = name.split(".")
        last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
        tries = (parts[-1], ".".join(parts[last + 1 :]), name)
        found.add(next((one for one in tries if not any(_named(other, (one,)) for other in others)), name))
    return tuple(sorted(found))


def _named(path: str, names: Iterable[str]) -> bool:
    """Whether PEFT takes one of `names` for the module of that path."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _require_all_found(wanted: tuple[str, ...], linears: set[str], heads: set[str]) -> None:
    for name in wanted:
        if any(_named(path, (name,)) for path in linears):
            continue
        if any(_named(path, (name,)) for path in heads):
            raise EngineError(
                "lora.targets",
                f"{name} is the layer that computes the logits, and it is not adapted here: the loss takes its weight "
                "directly, in chunks, without what an adapter would add",
                "leave it out of lora.targets",
            )
        leaves = {path.rsplit(".", 1)[-1] for path in linears}
        raise EngineError(
            "lora.targets", f"the model has no linear layer named {name!r}", did_you_mean(name, leaves)
        )


def resolve_experts(model: Any) -> tuple[str, ...]:
    """The stacked weights of the experts, as PEFT is told of them.

    Raises:
        EngineError: the model has none.
    """
    found = lora.expert_parameters(model)
    if not found:
        raise EngineError(
            "lora.experts", "this model has no experts, and lora.experts asks for adapters on them",
            "set lora.experts to false",
        )  # fmt: skip
    return found


def is_block_linear(model: Any, name: str, module: Any) -> bool:
    """A linear layer inside the transformer blocks: of a quantized model those in 4 bits, since what stays in 16 (routers,
    weights that a kernel reads) has a reason to; else those whose path has a layer number and that are nothing more. Not
    one that loading found no gradient to reach."""
    if pattern(name) in getattr(model, "unreached_linears", ()):
        return False
    if getattr(model, "is_loaded_in_4bit", False):
        return isinstance(module, Linear4bit)
    return type(module) in (torch.nn.Linear, Linear4bit) and any(part.isdigit() for part in name.split("."))


def is_attention(path: str) -> bool:
    """True for the projections of an attention block, whatever the family calls them."""
    parts = path.split(".")
    return parts[-1] in ATTENTION_LEAVES or bool(ATTENTION_PARENTS & set(parts[:-1]))


def report_on(peft_model: PeftModel, settings: LoraSettings, targets: tuple[str, ...]) -> AdapterReport:
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    return AdapterReport(
        trainable_parameters=sum(p.numel() for p in trained),
        adapter_bytes=sum(p.numel() * p.element_size() for p in trained),
        target_modules=targets,
        module_count=sum(isinstance(m, LoraLayer) for m in peft_model.modules()),
        dtype=settings.dtype,
        variant=variant_name(settings),
    )


def save(peft_model: PeftModel, folder: Path, base_path: Path) -> None:
    """Write the adapter so that plain PEFT puts it onto the plain model, and onto every module that it was trained on.

    Raises:
        OSError: the disk is full.
    """
    config = peft_model.peft_config["default"]
    as_trained = config.target_modules, config.target_parameters
    config.target_modules, config.target_parameters = lora.plain_targets(config, peft_model.get_base_model())
    try:
        peft_model.save_pretrained(folder, save_embedding_layers=False)
    finally:
        config.target_modules, config.target_parameters = as_trained
    if names.is_part(base_path):
        saved = LoraConfig.from_pretrained(str(folder))
        fitted, weights = fit_names(saved, load_file(folder / FILE), names.skeleton(base_path))
        save_file(weights, folder / FILE, metadata={"format": "pt"})
        fitted.save_pretrained(str(folder))


def weights_of(peft_model: PeftModel, name: str = "default") -> dict[str, torch.Tensor]:
    """What is saved of an adapter: its own weights and the rows it trained, never a whole table, which PEFT would add to it
    where the embeddings were enlarged."""
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(
        peft_model, adapter_name=name, save_embedding_layers=False
    )
    return found


def reopen(model: Any, folder: Path) -> PeftModel:
    """A saved adapter on the 4-bit model that `loading` built, in the type it was trained in.

    Raises:
        ValueError: it does not fit.
    """
    config, weights = fit_names(LoraConfig.from_pretrained(str(folder)), load_file(folder / FILE), model)
    lora.teach(config, model)
    new_rows.fit(model, config)
    with lora.literally():
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    new_rows.teach(peft_model)
    if set(weights_of(peft_model)) != set(weights):
        raise ValueError(f"the adapter in {folder} does not fit {type(model).__name__}")
    _cast(peft_model, next(iter(weights.values())).dtype)
    lora.put(peft_model, weights)
    return peft_model


def fit_names(
    config: LoraConfig, weights: Mapping[str, torch.Tensor], model: Any
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """An adapter of a language model by the names that it has in `model`, which is the same alone, or one that also sees."""
    known = {name for name, _ in model.named_modules()}
    paths = {key: _module_of(key) for key in weights}
    strange = [path for path in paths.values() if path not in known]
    if not strange:
        return config, dict(weights)
    here = names.decoder_path(model)
    there = _prefix_there(strange[0], here, known)
    renamed = {
        key: path if path in known else f"{here}.{path.removeprefix(there)}" for key, path in paths.items()
    }
    linears = {
        name.replace(".base_layer", "")
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    chosen = linears & {path for key, path in renamed.items() if ".lora_" in key}
    others = {name.replace(".base_layer", "") for name in known} - chosen
    config.target_modules = set(shortest_names(chosen, others))
    return config, {k.replace(paths[k], renamed[k], 1): tensor for k, tensor in weights.items()}


def _module_of(key: str) -> str:
    return key.removeprefix(PREFIX).split(".lora_")[0].split(new_rows.OWNER)[0].replace(".base_layer", "")


def _prefix_there(path: str, here: str, known: set[str]) -> str:
    """What stands in `path` for `here`.

    Raises:
        ValueError: it is a module of no such model.
    """
    parts = path.split(".")
    for cut in range(len(parts)):
        if f"{here}.{'.'.join(parts[cut:])}" in known:
            return ".".join(parts[:cut]) + "."
    raise ValueError(f"{path} is no module of this model")


def variant_name(settings: LoraSettings) -> str:
    """LoRA, rsLoRA, DoRA, with its initialisation when it is not the usual one."""
    name = "DoRA" if settings.dora else "LoRA"
    name = f"rs{name}" if settings.rslora else name
    return f"{name} ({settings.init})" if settings.init != "default" else name


def assert_only_adapters_train(peft_model: PeftModel) -> None:
    """Only LoRA parameters and new rows may require gradients.

    Raises:
        AssertionError: something of the base would be trained: a bug.
    """
    for name, parameter in peft_model.named_parameters():
        is_adapter = "lora_" in name or new_rows.DELTA in name
        assert parameter.requires_grad == is_adapter, f"{name} requires_grad is {parameter.requires_grad}"


def _fit_loftq(peft_model: PeftModel, base_path: Path | None) -> None:
    """Begin each adapter as the best rank-r approximation of what quantization lost (arXiv 2310.08659, one iteration
    on a base that stays as it is): s B A = W - dequantized(W), as near as r allows.

    PEFT's own helper needs a GPU and leaves the scaling out.
    """
    stored = {} if base_path is None else spec.headers_of_folder(base_path)
    if base_path is not None and is_used_as_it_is(base_path):
        raise EngineError(
            "lora.init",
            "LoftQ makes up for what quantization lost, and this base has its weights in 4 bits only",
            "use the default initialisation",
        )
    for name, module in peft_model.named_modules():
        if not isinstance(module, LoraLayer) or "default" not in module.lora_B:
            continue
        tensor = name.removeprefix("base_model.model.") + ".weight"
        if base_path is None or tensor not in stored:
            raise EngineError(
                "lora.init",
                f"LoftQ needs the model's 16-bit weights on disk, and {tensor} is not there",
                "use the default initialisation",
            )
        a, b = _loftq_factors(module, weight_reader.read(base_path, stored[tensor]))
        module.lora_A["default"].weight.data = a
        module.lora_B["default"].weight.data = b


def _loftq_factors(module: Any, original: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in) and B (out, r) in fp32, equally long. From the eigenvectors of the smaller Gram matrix of the residual,
    which are its singular vectors, at a fraction of the time."""
    weight, rank, scaling = (
        module.get_base_layer().weight,
        module.r["default"],
        module.scaling["default"],
    )
    lost = original.to(weight.device, torch.float32)
    if isinstance(module.get_base_layer(), Linear4bit):
        lost = lost - dequantized(weight.data, weight.quant_state).float()
    is_wide = lost.shape[0] <= lost.shape[1]
    rows = lost if is_wide else lost.T
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    left = vectors[:, -rank:].flip(-1)
    floor = values[-1].clamp(min=1e-30) * torch.finfo(torch.float32).eps
    length = values[-rank:].flip(-1).clamp(min=floor).sqrt().sqrt()
    first, second = left * length, (left / length).T @ rows
    if first.shape[1] < rank:  # a rank above the matrix's own adds nothing
        missing = rank - first.shape[1]
        first = torch.nn.functional.pad(first, (0, missing))
        second = torch.nn.functional.pad(second, (0, 0, 0, missing))
    b, a = (first, second) if is_wide else (second.T, first.T)
    return a.contiguous(), (b / scaling).contiguous()


def _cast(peft_model: PeftModel, dtype: torch.dtype) -> None:
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _cuda_devices(model: Any) -> list[int]:
    device = next(model.parameters()).device
    return [device.index or 0] if device.type == "cuda" else []
