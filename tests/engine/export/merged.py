"""What an export is compared with: PEFT's own merge, and the checks it came through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"lora__rslora": True},
    "dora": {"lora__dora": True},
    "bf16": {"lora__dtype": "bf16"},
    "attention": {"lora__targets": "attention"},
}


def merged_by_peft(
    base: Path, adapter: Path, change: Callable[[Any], None] | None = None
) -> dict[str, torch.Tensor]:
    """The weights PEFT itself makes of base and adapter, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if change is not None:
        change(model)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}
