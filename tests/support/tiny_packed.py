"""Turns the weights of a tiny folder into those of a base that comes quantized: FP8, MXFP4, bitsandbytes in 4 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

BLOCK = 32
"""Rows and columns that share a scale in FP8; the published models have 128."""
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _change(folder: Path, settings: dict[str, Any], change: Any) -> dict[str, torch.Tensor]:
    """Rewrite each weight by `change(name, weight)`, which gives tensors to store and what they stand for."""
    file, meant = folder / "model.safetensors", {}
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        found = change(name, tensor)
        if found is None:
            stored[name] = tensor
        else:
            stored |= found[0]
            meant[name] = found[1]
    save_file({n: t.contiguous() for n, t in stored.items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return meant


def _is_linear(name: str, tensor: torch.Tensor) -> bool:
    inside = name.startswith("model.layers.") and ".gate.weight" not in name and "router" not in name
    return inside and tensor.ndim == 2 and name.endswith(".weight") and min(tensor.shape) > 8


def to_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Linear layers as DeepSeek stores them; what each stands for, in fp32."""

    def change(name: str, weight: torch.Tensor) -> Any:
        if not _is_linear(name, weight):
            return None
        rows, columns = weight.shape
        high, wide = -(-rows // BLOCK), -(-columns // BLOCK)
        padded = torch.zeros(high * BLOCK, wide * BLOCK)
        padded[:rows, :columns] = weight.float()
        blocks = padded.reshape(high, BLOCK, wide, BLOCK)
        scale = blocks.abs().amax((1, 3)).clamp(min=1e-6) / 448
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        back = (packed.float() * scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
        whole = packed.reshape(padded.shape)[:rows, :columns]
        return {name: whole, f"{name}_scale_inv": scale}, back

    return _change(folder, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}, change)


def to_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Experts as gpt-oss stores them; what each stack stands for, (experts, in, out)."""

    def change(name: str, weight: torch.Tensor) -> Any:
        if weight.ndim != 3:
            return None
        experts, inputs, outputs = weight.shape
        groups = weight.float().transpose(1, 2).reshape(experts, outputs, inputs // 32, 32)
        exponent = (groups.abs().amax(-1).clamp(min=2**-20) / 6).log2().ceil()
        scaled = groups / exponent.exp2().unsqueeze(-1)
        table = torch.tensor(NUMBERS)
        nearest = (scaled.abs().unsqueeze(-1) - table).abs().argmin(-1)
        code = nearest + 8 * (scaled < 0)
        meant = table[nearest] * torch.where(scaled < 0, -1.0, 1.0) * exponent.exp2().unsqueeze(-1)
        blocks = (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8)
        scales = (exponent + 127).to(torch.uint8)
        back = meant.reshape(experts, outputs, inputs).transpose(1, 2)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, back

    return _change(folder, {"quant_method": "mxfp4"}, change)


def to_bitsandbytes(folder: Path, *, double_quant: bool = True, keep: str = "") -> dict[str, torch.Tensor]:
    """Linear layers as bitsandbytes saves them but those with `keep` in their name; the packed bytes of each."""

    def change(name: str, weight: torch.Tensor) -> Any:
        if not _is_linear(name, weight) or (keep and keep in name):
            return None
        packed, state = functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=double_quant, quant_type="nf4"
        )
        parts = {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
        return {name: packed, **parts}, packed

    settings = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant, "bnb_4bit_compute_dtype": "bfloat16",
    }  # fmt: skip
    return _change(folder, settings, change)
