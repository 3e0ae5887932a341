"""The settings whose memory is predicted and measured, in order of worth within a model. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CHECKPOINTING, OPTIMIZER, LOSS = "training.gradient_checkpointing", "training.optimizer", "training.loss"
DOUBLE, PACKING, RANK = "quantization.double_quant", "data.packing", "lora.rank"


@dataclass(frozen=True)
class Setting:
    """`rows` sequences of `seq_len` tokens at once; `packed` documents in each."""

    seq_len: int
    rows: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    packed: int = 1

    @property
    def words(self) -> str:
        told = [f"{path.split('.')[1]} {value}" for path, value in self.changes.items() if path != PACKING]
        told += [f"{self.packed} documents packed"] if self.packed > 1 else []
        return ", ".join([f"{self.rows} x {self.seq_len} tokens", *told])


@dataclass(frozen=True)
class Group:
    """A base and what is measured on it. `model`: a known model, or a type whose folder is made with `sizes`.
    `is_loaded`: from that folder, as a run does it; else its weights are made on the device."""

    model: str
    settings: tuple[Setting, ...]
    is_double_quant: bool = True
    sizes: dict[str, Any] = field(default_factory=dict)
    is_loaded: bool = False

    @property
    def is_folder(self) -> bool:
        return bool(self.sizes)

    @property
    def words(self) -> str:
        return f"{self.model}{'' if self.is_double_quant else ', single quantization'}"


MOE_SIZES = {
    "hidden_size": 1024, "intermediate_size": 2048, "moe_intermediate_size": 512, "num_hidden_layers": 4, "num_experts": 16,
    "num_experts_per_tok": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 4096,
}  # fmt: skip
NO_CHECKPOINTS = {CHECKPOINTING: False}
PACK = {PACKING: True}

ON_A_CARD: tuple[Group, ...] = (
    Group(
        "llama-3-8b",
        (
            Setting(1024),
            Setting(4096),
            Setting(512, changes=NO_CHECKPOINTS),
            Setting(8192),
            Setting(1024, 4),
            Setting(1024, changes={OPTIMIZER: "paged_adamw_32bit", RANK: 64}),
            Setting(1024, changes={OPTIMIZER: "adamw_torch_fused"}),
            Setting(4096, changes=PACK, packed=8),
            Setting(1024, changes={LOSS: "full"}),
            Setting(512),
            Setting(2048, 2),
            Setting(1024, changes=NO_CHECKPOINTS),
        ),
    ),
    Group("llama-3-8b", (Setting(1024), Setting(4096)), is_double_quant=False),
    Group("qwen3_moe", (Setting(512), Setting(2048), Setting(1024, 2, NO_CHECKPOINTS)), sizes=MOE_SIZES, is_loaded=True),
    Group(
        "llama-3.2-1b",
        (
            Setting(2048),
            Setting(8192),
            Setting(1024, 8),
            Setting(2048, changes=NO_CHECKPOINTS),
            Setting(1024, changes={OPTIMIZER: "adamw_torch_fused"}),
            Setting(2048, changes=PACK, packed=4),
            Setting(512),
        ),
    ),
    Group("qwen3-8b", (Setting(1024), Setting(4096), Setting(512, changes=NO_CHECKPOINTS), Setting(8192), Setting(1024, 4))),
    Group("llama-3.2-1b", (Setting(1024),), is_double_quant=False),
)  # fmt: skip

TINY = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip
TINY_MOE = {**TINY, "moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2}

ON_THE_CPU: tuple[Group, ...] = (
    Group("llama", (Setting(128), Setting(64, 2, NO_CHECKPOINTS)), sizes=TINY, is_loaded=True),
    Group("llama", (Setting(128),), is_double_quant=False, sizes=TINY),
    Group("qwen3_moe", (Setting(64),), sizes=TINY_MOE, is_loaded=True),
)


def groups(device: str) -> tuple[Group, ...]:
    return ON_A_CARD if device == "cuda" else ON_THE_CPU


def every(device: str) -> Iterator[tuple[Group, Setting]]:
    for group in groups(device):
        for setting in group.settings:
            yield group, setting
