"""Merges an adapter into its base, tensor by tensor, shard by shard. Imports torch.

The delta is added in fp32 and stored in 16 bits (CORRECTNESS 4). Two honest merges exist: into the original weights,
or into the dequantized 4-bit weights the adapter was trained against (CORRECTNESS 3). Nothing is quantized again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.export.stream import save_file
from qlora_engine.models import spec
from qlora_engine.models.files import INDEX_FILE

Report = Callable[[str, int, int | None, str], None]
PREFIX = "base_model.model."
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTO = ("original", "dequantized")
CACHED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Delta:
    """One module's adapter. `a` (r, in), `b` (out, r), `magnitude` (out) for DoRA; all fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None

    def merged_into(self, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`weight` (out, in) with the adapter added in fp32, as `dtype`: W + s B A, and for DoRA each row scaled to its
        magnitude (arXiv 2402.09353, equation 5). Some rows at a time, so that the sums stay in the processor's cache."""
        merged = torch.empty(weight.shape, dtype=dtype)
        step = max(1, CACHED_ELEMENTS // weight.shape[1])
        for start in range(0, weight.shape[0], step):
            rows = slice(start, start + step)
            whole = torch.addmm(weight[rows].float(), self.b[rows], self.a, alpha=self.scaling)
            if self.magnitude is not None:
                whole *= (self.magnitude[rows] / torch.linalg.norm(whole, dim=1)).unsqueeze(1)
            merged[rows] = whole
        return merged


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

    At most two tensors are in memory: the one that is made and the last.

    Raises:
        EngineError: an adapter's module is not in the base.
        Cancelled: asked to stop.
    """
    headers = spec.headers_of_folder(base)
    require_modules(headers, deltas)
    stored = DTYPES[dtype]
    done = 0

    def counted(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal done
        for name, tensor in merged_tensors(
            base, names, deltas, quantizer, quantized_modules, control, stored
        ):
            done += 1
            report("exporting", done, len(headers), "tensors")
            yield name, tensor

    for file in dict.fromkeys(header.file for header in headers.values()):
        shapes = {name: tuple(h.shape) for name, h in headers.items() if h.file == file}
        save_file(counted(shapes), shapes, stored, out / file)
    weight_map = {name: header.file for name, header in headers.items()}
    if len(set(weight_map.values())) > 1:
        total = sum(math.prod(header.shape) for header in headers.values()) * stored.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def require_modules(weights: Iterable[str], deltas: Mapping[str, Delta]) -> None:
    """Every adapted module must be a weight of the base.

    Raises:
        EngineError: with the first that is not.
    """
    known = set(weights)
    missing = [module for module in deltas if f"{module}.weight" not in known]
    if missing:
        raise EngineError(
            "export.module", f"the base has no weight {missing[0]}.weight", "report this model as a bug"
        )


def merged_tensors(
    base: Path,
    names: Iterable[str],
    deltas: Mapping[str, Delta],
    quantizer: Quantizer | None,
    quantized_modules: frozenset[str],
    control: Control,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged weights `names`, one after the other: `dtype` where something was added, else as the base stores them.

    Raises:
        Cancelled: asked to stop.
    """
    headers = spec.headers_of_folder(base)
    for name in names:
        control.check()
        # Opened for each: what was read through an open file stays mapped, and counts as this process's memory.
        with safe_open(base / headers[name].file, framework="pt") as stored:
            tensor = stored.get_tensor(name)
        yield name, merged_weight(name, tensor, deltas, quantizer, quantized_modules, dtype)


def merged_weight(
    name: str,
    tensor: torch.Tensor,
    deltas: Mapping[str, Delta],
    quantizer: Quantizer | None,
    quantized: frozenset[str],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The stored `tensor` of that name as the merge has it; unchanged where nothing is added."""
    module = name.removesuffix(".weight")
    if quantizer is not None and module in quantized:
        tensor = quantizer.round_trip(tensor)
    delta = deltas.get(module)
    return tensor if delta is None else delta.merged_into(tensor, dtype)
