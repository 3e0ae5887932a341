"""Merges an adapter into its base, tensor by tensor, shard by shard. Imports torch.

The delta is added in fp32 and stored in 16 bits (CORRECTNESS 4). Two honest merges exist: into the original weights,
or into the dequantized 4-bit weights the adapter was trained against (CORRECTNESS 3). Nothing is quantized again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.models import spec
from qlora_engine.models.files import INDEX_FILE

Report = Callable[[str, int, int | None, str], None]
PREFIX = "base_model.model."
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTO = ("original", "dequantized")


@dataclass(frozen=True)
class Delta:
    """One module's adapter. `a` (r, in), `b` (out, r), `magnitude` (out) for DoRA; all fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None

    def merged_into(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` (out, in) in fp32 with the adapter added: W + s B A, and for DoRA each row scaled to its magnitude
        (arXiv 2402.09353, equation 5)."""
        whole = weight.float() + self.scaling * (self.b @ self.a)
        if self.magnitude is None:
            return whole
        norm = torch.linalg.norm(whole, dim=1)
        return (self.magnitude / norm).unsqueeze(1) * whole


@dataclass(frozen=True)
class Quantizer:
    """How the base was quantized in training, to do it again: type, nesting and the type it was quantized from."""

    quant_type: str
    is_double_quant: bool
    compute_dtype: torch.dtype

    def round_trip(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` as the run saw it: quantized and dequantized."""
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            weight.to(self.compute_dtype),
            blocksize=64,
            compress_statistics=self.is_double_quant,
            quant_type=self.quant_type,
        )
        return functional.dequantize_4bit(packed, state)


def read_deltas(adapter_dir: Path, adapter_config: Mapping[str, Any]) -> dict[str, Delta]:
    """Module path -> its delta.

    Raises:
        EngineError: a variant whose merge is not known here.
    """
    if adapter_config.get("peft_type") != "LORA" or adapter_config.get("bias", "none") != "none":
        raise EngineError(
            "export.variant", "this adapter is of a kind that is not merged here", "export it as an adapter"
        )
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    deltas = {}
    for name in [n for n in tensors if n.endswith("lora_A.weight")]:
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        stem = name.removesuffix("lora_A.weight")
        magnitude = tensors.get(f"{stem}lora_magnitude_vector")
        if magnitude is None:
            magnitude = tensors.get(f"{stem}lora_magnitude_vector.weight")
        a, b = tensors[name].float(), tensors[f"{stem}lora_B.weight"].float()
        deltas[module] = Delta(
            a, b, scaling_of(adapter_config, a.shape[0]), None if magnitude is None else magnitude.float()
        )
    return deltas


def scaling_of(adapter_config: Mapping[str, Any], rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    alpha = float(adapter_config["lora_alpha"])
    return alpha / math.sqrt(rank) if adapter_config.get("use_rslora") else alpha / rank


def write_merged(
    base: Path,
    deltas: Mapping[str, Delta],
    out: Path,
    *,
    dtype: str = "bf16",
    quantizer: Quantizer | None = None,
    quantized_modules: frozenset[str] = frozenset(),
    control: Control,
    report: Report,
) -> None:
    """Write the merged weights into `out`, in the base's own shards. With `quantizer`, every module of
    `quantized_modules` is first brought to what the 4-bit base computes with.

    At most one shard is in memory.

    Raises:
        EngineError: an adapter's module is not in the base.
        Cancelled: asked to stop.
    """
    headers = spec.headers_of_folder(base)
    missing = [module for module in deltas if f"{module}.weight" not in headers]
    if missing:
        raise EngineError(
            "export.module", f"the base has no weight {missing[0]}.weight", "report this model as a bug"
        )
    done, weight_map, total = 0, {}, 0
    for file in spec.weight_files(base):
        shard = {}
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                control.check()
                shard[name] = (
                    _merged(name, stored.get_tensor(name), deltas, quantizer, quantized_modules)
                    .to(DTYPES[dtype])
                    .contiguous()
                )
                weight_map[name] = file.name
                total += shard[name].nbytes
                done += 1
                report("exporting", done, len(headers), "tensors")
        save_file(shard, out / file.name, metadata={"format": "pt"})
    if len(set(weight_map.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _merged(
    name: str,
    tensor: torch.Tensor,
    deltas: Mapping[str, Delta],
    quantizer: Quantizer | None,
    quantized: frozenset[str],
) -> torch.Tensor:
    module = name.removesuffix(".weight")
    if quantizer is not None and module in quantized:
        tensor = quantizer.round_trip(tensor)
    delta = deltas.get(module)
    return tensor if delta is None else delta.merged_into(tensor)
