"""Short ways to say what is estimated."""

from __future__ import annotations

from typing import Any

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory.estimate import Estimate, estimate
from qlora_engine.models import known
from qlora_engine.models.spec import ModelFacts

SIZE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 4096, "max_position_embeddings": 1024,
}  # fmt: skip
"""A tiny model large enough for its activations to matter."""
SIZES: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 768, "word_embed_proj_dim": 256},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 2 + ["full_attention"], "sliding_window": 64},
}


def _counted() -> tuple[str, ...]:
    found: dict[str, str] = {}
    for model in known.known_models():
        if model.facts().source == "table":
            found.setdefault(repr(sorted(model.config.items())), model.name)
    return tuple(found.values())


COUNTED = _counted()
"""Known models whose parts the table counts, one of each configuration."""


def facts(name: str) -> ModelFacts:
    """Facts of a known model."""
    found = known.find(name)
    assert found is not None
    return found.facts()


def config(micro_batch: int = 1, **changes: Any) -> TrainingConfig:
    """The default configuration with changes; `lora__rank=8` sets lora.rank. One micro-batch per step unless said."""
    found = with_value(TrainingConfig(), "training.effective_batch", micro_batch)
    for name, value in changes.items():
        found = with_value(found, name.replace("__", "."), value)
    return found


def estimated(
    name: str,
    seq_len: int = 512,
    micro_batch: int = 1,
    *,
    upcast: bool = False,
    device: str = "cuda",
    **changes: Any,
) -> Estimate:
    """The closed form for a known model."""
    return estimate(
        facts(name), config(micro_batch, **changes), seq_len=seq_len, micro_batch=micro_batch, device=device,
        upcast_unquantized=upcast,
    )  # fmt: skip
