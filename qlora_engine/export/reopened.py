"""Opens an export with the plain libraries, as its user will. Imports the ML stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from gguf import GGUFReader
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer

from qlora_engine.export import gguf_tokenizer
from qlora_engine.models import gguf_facts, gguf_header, gguf_import, loading, new_rows
from qlora_engine.models.names import plain_class
from qlora_engine.models.packed_loading import plain_model
from qlora_engine.models.quiet import quiet

LIBRARIES = {
    "adapter": "plain peft",
    "merged": "plain transformers",
    "bnb4": "plain transformers and bitsandbytes",
    "gguf": "the GGUF reader of transformers",
    "ollama": "the GGUF reader of transformers",
    "gguf-lora": "the gguf package",
}


def gguf_of(export: Path) -> Path:
    return next(export.glob("*.gguf"))


def reopen(export: Path, base: Path, kind: str) -> tuple[Any, Any]:
    """The exported model in fp32, and its own tokenizer where it has one."""
    if kind in ("gguf", "ollama"):
        file = gguf_of(export)
        model, _ = gguf_import.read(file, gguf_facts.facts_of_gguf(file, file.stem), lambda *_: None)
        pre = str(gguf_header.read_header(file).fields["tokenizer.ggml.pre"])
        return model.eval(), gguf_tokenizer.read(file, pre)
    if kind in ("merged", "bnb4"):
        return _plain(export).eval(), AutoTokenizer.from_pretrained(str(export))
    with quiet():
        model = plain_model(base)
    compute_in_fp32(model)
    if kind == "adapter":
        new_rows.fit(model, PeftConfig.from_pretrained(str(export)))
        return PeftModel.from_pretrained(model, str(export)).eval(), None
    _add_lora(model, base, gguf_of(export))
    return model.eval(), None


def _plain(folder: Path) -> Any:
    with quiet():
        model = plain_class(folder).from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    compute_in_fp32(model)
    return model


def compute_in_fp32(model: Any) -> None:
    """A 4-bit model computes in the types its checkpoint names, whatever is asked for; numbers are compared in fp32."""
    loading.keep_weights_as_they_are(model)
    for parameter in model.parameters():
        if not isinstance(parameter, Params4bit):
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = torch.float32
            module.weight.quant_state.dtype = torch.float32


def four_bit_layers(model: Any) -> list[Any]:
    """The quantization states of the loaded tensors."""
    return [m.weight.quant_state for m in model.modules() if isinstance(m, Linear4bit)]


def _add_lora(model: Any, base: Path, file: Path) -> None:
    """Add alpha / rank B A to the weights of `model`, as llama.cpp would to its own."""
    reader = GGUFReader(file)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    values = {t.name: np.asarray(t.data, dtype=np.float32) for t in reader.tensors}
    architecture = str(reader.fields["general.architecture"].contents())
    for module, stem, heads in gguf_names(model.config, base, architecture):
        if f"{stem}.lora_a" not in values:
            continue
        a, b = torch.tensor(values.pop(f"{stem}.lora_a")), torch.tensor(values.pop(f"{stem}.lora_b"))
        if heads is not None:
            b = b.reshape(heads, b.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(b.shape)
        model.get_submodule(module).weight.data += alpha / a.shape[0] * (b @ a)
    if values:
        raise ValueError(f"{min(values)} belongs to no weight of the base")


def gguf_names(config: Any, base: Path, architecture: str) -> list[tuple[str, str, int | None]]:
    """(module, llama.cpp's name of its weight, heads whose rows llama.cpp orders another way) of every weight."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    turned = architecture == "llama"
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if turned else {}
    modules = [n.removesuffix(".weight") for n in gguf_import_names(base) if n.endswith(".weight")]
    return [(m, f"{names.get_name(m)}.weight", heads.get(m.rpartition(".")[2])) for m in modules]


def gguf_import_names(base: Path) -> list[str]:
    """Names of the base's weights."""
    from qlora_engine.models import spec

    return list(spec.headers_of_folder(base))
