"""What of a decoder block matters for its activations, read off a model's facts. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import static
from qlora_engine.models.spec import LinearFact, ModelFacts, text_config

COPIES_ATTENTION = frozenset({"phi3", "phi", "stablelm", "gpt_neox", "glm", "glm4"})
"""Queries put together from a rotated and a plain part: the output of attention has to be copied."""
WITHOUT_ROTARY = frozenset({"opt"})
PARALLEL = frozenset({"phi", "cohere", "cohere2"})
"""Attention and MLP read the same normalised input."""
POST_NORM = frozenset({"olmo2", "olmo3", "exaone4"})
"""Norms come after attention and MLP only."""
CENTRED_NORM = frozenset({"cohere", "cohere2"})
"""Norms written in Python that keep the centred input besides."""
PYTHON_GELU = frozenset({"gelu_new", "gelu_fast", "quick_gelu"})
"""Activations put together from several operations, each keeping its input."""
SQUARED = frozenset({"relu2"})
"""Activations that end with a square, whose gradient is made of three tensors."""
HEAD_NORMS = ("q_norm", "k_norm", "query_layernorm", "key_layernorm")
SLIDING_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "olmo3": 4, "exaone4": 4}
"""Every n-th layer sees all tokens, the others a window."""


@dataclass(frozen=True)
class Linear:
    """A 4-bit linear layer of a block; `rank` 0: without adapter."""

    in_: int
    out: int
    rank: int
    has_dropout: bool = False

    @property
    def weights(self) -> int:
        return self.in_ * self.out

    def kept(self, shape: Any) -> int:
        """Bytes per token that its adapter keeps besides a shared input: the input in the adapter's own type, its
        product with A, and with dropout the mask and what is left."""
        if not self.rank:
            return 0
        product = self.rank * shape.adapter_bytes
        if self.has_dropout:
            mask = 1 if shape.is_cuda else shape.adapter_bytes
            return int(self.in_ * (mask + shape.adapter_bytes) + product)
        cast = self.in_ * shape.adapter_bytes if shape.adapter_bytes != shape.element_bytes else 0
        return int(cast + product)


@dataclass(frozen=True)
class Block:
    """A decoder block by its widths. `mlp_out` is None for experts."""

    hidden: int
    query: int
    key: int
    heads: int
    head_dim: int
    inner: int
    attention_in: tuple[Linear, ...]
    attention_out: Linear
    mlp_in: tuple[Linear, ...]
    mlp_out: Linear | None
    is_gated: bool
    activation_steps: int
    is_layer_norm: bool
    outer_norms: int
    has_first_norm: bool
    has_head_norms: bool
    is_eager: bool
    has_rotary: bool
    is_parallel: bool
    copies_output: bool
    """Attention's output is copied before its projection."""
    is_relu: bool
    is_squared: bool
    norm_copies: int
    residual_dropout: bool
    window: int | None
    expert_inner: int
    experts_per_token: int
    experts: int
    """Of a block; 0 without any."""
    computes_one_by_one: bool
    """Experts in 4 bits are multiplied one after the other; others all in one product."""
    expert_rank: int


def block_of(facts: ModelFacts, config: TrainingConfig) -> Block:
    """The block of `facts` with the adapters of `config`."""
    adapted = {id(linear) for linear in static.target_linears(facts, config.lora.targets)}

    def made(linear: LinearFact) -> Linear:
        rank = config.lora.rank if id(linear) in adapted else 0
        return Linear(linear.in_features, linear.out_features, rank, config.lora.dropout > 0)

    attention = [t for t in facts.linears if static.is_attention(t.path)]
    mlp = [t for t in facts.linears if not static.is_attention(t.path)]
    norms = [t for t in facts.unquantized if t.role == "norm" and ".*." in t.name]
    outer = [t for t in norms if t.name.endswith("weight") and not any(part in t.name for part in HEAD_NORMS)]
    text = text_config(facts.config)
    is_eager = bool(text.get("attn_logit_softcapping", facts.model_type == "gemma2"))
    return Block(
        hidden=facts.hidden_size,
        query=facts.heads * facts.head_dim,
        key=facts.kv_heads * facts.head_dim,
        heads=facts.heads,
        head_dim=facts.head_dim,
        inner=facts.intermediate_size,
        attention_in=tuple(made(t) for t in attention[:-1]),
        attention_out=made(attention[-1]),
        mlp_in=tuple(made(t) for t in mlp[:-1]),
        mlp_out=made(mlp[-1]) if mlp else None,
        is_gated=facts.is_gated_mlp,
        activation_steps=4 if _activation(text, facts.model_type) in PYTHON_GELU else 1,
        is_layer_norm=any(t.name.endswith("bias") for t in norms),
        outer_norms=1 if _shares_residual(text, facts.model_type) else max(1, len(outer)),
        has_first_norm=facts.model_type not in POST_NORM,
        has_head_norms=any(part in t.name for t in norms for part in HEAD_NORMS),
        is_eager=is_eager,
        has_rotary=facts.model_type not in WITHOUT_ROTARY,
        is_parallel=facts.model_type in PARALLEL,
        copies_output=is_eager or facts.model_type in COPIES_ATTENTION,
        is_relu=_activation(text, facts.model_type) == "relu",
        is_squared=_activation(text, facts.model_type) in SQUARED,
        norm_copies=2 if facts.model_type in CENTRED_NORM else 1,
        residual_dropout=facts.model_type == "opt" and float(text.get("dropout", 0.1)) > 0,
        window=facts.sliding_window,
        expert_inner=int(text.get("moe_intermediate_size") or facts.intermediate_size),
        experts_per_token=facts.experts_per_token or 0,
        experts=facts.experts or 0,
        computes_one_by_one=config.quantization.experts == "4bit",
        expert_rank=config.lora.rank if config.lora.experts else 0,
    )


def _shares_residual(text: Any, model_type: str) -> bool:
    """GPT-NeoX with a parallel residual: two norms of the same input, which is kept once."""
    return model_type == "gpt_neox" and bool(text.get("use_parallel_residual", True))


def caps_logits(facts: ModelFacts) -> bool:
    """True where logits are bounded by a soft cap."""
    default = 30.0 if facts.model_type == "gemma2" else None
    return bool(text_config(facts.config).get("final_logit_softcapping", default))


def sliding_layers(facts: ModelFacts) -> int:
    """How many layers see a window only."""
    text = text_config(facts.config)
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return sum("full" not in str(kind) for kind in kinds)
    if facts.sliding_window is None:
        return 0
    every = SLIDING_EVERY.get(facts.model_type)
    return facts.layers - facts.layers // every if every else facts.layers


def _activation(text: Any, model_type: str) -> str:
    found = text.get("hidden_act") or text.get("activation_function") or text.get("hidden_activation")
    return str(found or {"phi": "gelu_new", "opt": "relu"}.get(model_type, "silu"))
