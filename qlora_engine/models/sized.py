"""Facts of a model that follow from the usual numbers of its configuration, however its tensors are known. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine.models.blueprints import Sizes, whole_number
from qlora_engine.models.parts import LinearFact, ModelFacts


def facts_of_sizes(
    sizes: Sizes, text: Mapping[str, Any], config: Mapping[str, Any], *,
    name: str, origin: str, architecture: str, linears: tuple[LinearFact, ...], is_gated_mlp: bool, experts: int | None,
) -> ModelFacts:  # fmt: skip
    """`text` is the language model's part of `config`. What tensors tell besides is left empty."""
    return ModelFacts(
        name=name,
        origin=origin,
        path=None,
        revision=None,
        architecture=architecture,
        model_type=str(text.get("model_type", "unknown")),
        config=config,
        hidden_size=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.inner,
        vocab_size=sizes.vocab,
        max_positions=whole_number(text, "max_position_embeddings"),
        is_tied=sizes.is_tied,
        is_gated_mlp=is_gated_mlp,
        experts=experts,
        experts_per_token=whole_number(text, "num_experts_per_tok") if experts else None,
        sliding_window=whole_number(text, "sliding_window"),
        linears=linears,
        unquantized=(),
    )
