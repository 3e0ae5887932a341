"""LoRA adapters on a 4-bit base, through PEFT. Imports the ML stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from qlora_engine.config import LoraSettings
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.models import spec

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


def attach(
    model: Any, settings: LoraSettings, *, base_path: Path | None = None, seed: int = 0
) -> tuple[PeftModel, AdapterReport]:
    """Freeze `model` and put LoRA on the chosen linear layers.

    The adapters' first values depend on `seed` alone. `base_path` is the folder of the 16-bit weights, needed by
    LoftQ, which fits the adapters to what quantization lost and leaves the 4-bit base as it is.

    Raises:
        EngineError: no such module, or LoftQ without the 16-bit weights.
    """
    targets = resolve_targets(model, settings.targets)
    config = lora_config(settings, targets)
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
        if settings.init == "loftq":
            _fit_loftq(peft_model, base_path)
    _cast(peft_model, ADAPTER_DTYPES[settings.dtype])
    return peft_model, report_on(peft_model, settings, targets)


def lora_config(settings: LoraSettings, targets: tuple[str, ...]) -> LoraConfig:
    """PEFT's configuration of an adapter on `targets`."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )


def resolve_targets(model: Any, targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Leaf names of the linear layers to adapt, sorted; never the head.

    Raises:
        EngineError: a name that matches no linear layer, or nothing at all matched.
    """
    head = model.get_output_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    leaves = {name.rsplit(".", 1)[-1] for name in linears}
    if targets == "all-linear":
        chosen = {
            name.rsplit(".", 1)[-1] for name, module in linears.items() if is_block_linear(name, module)
        }
    elif targets == "attention":
        chosen = {name.rsplit(".", 1)[-1] for name in linears if is_attention(name)}
    else:
        wanted = (targets,) if isinstance(targets, str) else targets
        for name in wanted:
            if name not in leaves:
                raise EngineError(
                    "lora.targets",
                    f"the model has no linear layer named {name!r}",
                    did_you_mean(name, leaves),
                )
        chosen = set(wanted)
    if not chosen:
        raise EngineError(
            "lora.targets",
            f"no linear layer of this model matches {targets!r}",
            f"its layers: {', '.join(sorted(leaves))}",
        )
    return tuple(sorted(chosen))


def is_block_linear(name: str, module: Any) -> bool:
    """A linear layer inside the transformer blocks: it is quantized, or its path has a layer number."""
    return isinstance(module, Linear4bit) or any(part.isdigit() for part in name.split("."))


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


def variant_name(settings: LoraSettings) -> str:
    """LoRA, rsLoRA, DoRA, with its initialisation when it is not the usual one."""
    name = "DoRA" if settings.dora else "LoRA"
    name = f"rs{name}" if settings.rslora else name
    return f"{name} ({settings.init})" if settings.init != "default" else name


def assert_only_adapters_train(peft_model: PeftModel) -> None:
    """Only LoRA parameters may require gradients.

    Raises:
        AssertionError: something of the base would be trained: a bug.
    """
    for name, parameter in peft_model.named_parameters():
        is_adapter = "lora_" in name
        assert parameter.requires_grad == is_adapter, f"{name} requires_grad is {parameter.requires_grad}"


def _fit_loftq(peft_model: PeftModel, base_path: Path | None) -> None:
    """Begin each adapter as the best rank-r approximation of what quantization lost (arXiv 2310.08659, one iteration
    on a base that stays as it is): s B A = W - dequantized(W), as near as r allows.

    PEFT's own helper needs a GPU and leaves the scaling out.
    """
    files = {} if base_path is None else _tensor_files(base_path)
    for name, module in peft_model.named_modules():
        if not isinstance(module, LoraLayer) or "default" not in module.lora_B:
            continue
        tensor = name.removeprefix("base_model.model.") + ".weight"
        if tensor not in files:
            raise EngineError(
                "lora.init",
                f"LoftQ needs the model's 16-bit weights on disk, and {tensor} is not there",
                "use the default initialisation",
            )
        with safe_open(files[tensor], framework="pt") as stored:
            original = stored.get_tensor(tensor)
        a, b = _loftq_factors(module, original)
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
        lost = lost - dequantize_4bit(weight.data, weight.quant_state).float()
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


def _tensor_files(base_path: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    found = {}
    for file in spec.weight_files(base_path):
        with safe_open(file, framework="pt") as stored:
            found.update(dict.fromkeys(stored.keys(), file))
    return found


def _cast(peft_model: PeftModel, dtype: torch.dtype) -> None:
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _cuda_devices(model: Any) -> list[int]:
    device = next(model.parameters()).device
    return [device.index or 0] if device.type == "cuda" else []
