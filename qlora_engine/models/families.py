"""The shape of a model's tensors from its `config.json`: pure arithmetic, no torch, no weights.

One entry per model type that the engine trains. Checked by the tests against the classes that transformers builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.errors import EngineError, did_you_mean

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block: `path` inside the block, features, whether it has a bias."""

    path: str
    in_features: int
    out_features: int
    has_bias: bool = False


@dataclass(frozen=True)
class Tensor:
    """A tensor that is not quantized: `path`, `shape`, `role` (embedding, head, norm, router, expert, other)."""

    path: str
    shape: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Blueprint:
    """All tensors of a model: `linears` and `block_tensors` once per block, `outer` once."""

    layers: int
    block_prefix: str
    linears: tuple[Linear, ...]
    block_tensors: tuple[Tensor, ...] = ()
    outer: tuple[Tensor, ...] = ()
    is_gated_mlp: bool = True


@dataclass(frozen=True)
class Sizes:
    """The numbers that most families share."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    is_tied: bool


@dataclass(frozen=True)
class Decoder:
    """What distinguishes one Llama-like family from another."""

    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    mlp: str = "gated"
    block_norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_has_bias: bool | str = False
    norm_has_weight: bool = True
    qk_norm: str = ""
    out_name: str = "o_proj"
    extra: Callable[[Config, Sizes], tuple[Tensor, ...]] = field(default=lambda config, sizes: ())


def sizes_of(config: Config) -> Sizes:
    """Read the shared numbers, whatever the family calls them.

    Raises:
        EngineError: one is missing or not a positive number.
    """
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    heads = _number(config, "num_attention_heads", "n_head")
    return Sizes(
        hidden=hidden,
        layers=_number(config, "num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=_optional(config, "num_key_value_heads") or heads,
        head_dim=_optional(config, "head_dim") or hidden // heads,
        inner=_optional(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden,
        vocab=_number(config, "vocab_size"),
        is_tied=bool(
            config.get("tie_word_embeddings", _TIED_BY_DEFAULT.get(str(config.get("model_type")), False))
        ),
    )


def blueprint_of(config: Config) -> Blueprint:
    """The tensors of the model that `config` describes.

    Raises:
        EngineError: an architecture that the engine does not train, with the reason.
    """
    kind = str(config.get("model_type", ""))
    if kind in REFUSED:
        raise EngineError(
            "model.unsupported",
            f"models of type {kind!r} cannot be trained here: {REFUSED[kind]}",
            "choose another model",
        )
    if kind in DECODERS:
        return _decoder(config, DECODERS[kind])
    if kind in _OTHERS:
        return _OTHERS[kind](config)
    if not kind:
        raise EngineError(
            "model.config", "config.json names no model_type", "check that it is a transformers model"
        )
    raise EngineError(
        "model.unknown_architecture",
        f"the architecture {kind!r} is not known to this program",
        did_you_mean(kind, supported_types()),
    )


def supported_types() -> tuple[str, ...]:
    return tuple(sorted((*DECODERS, *_OTHERS)))


def _decoder(config: Config, family: Decoder) -> Blueprint:
    s = sizes_of(config)
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    qkv_bias, out_bias = _flag(config, family.qkv_bias), _flag(config, family.out_bias)
    attention = (
        Linear("self_attn.q_proj", s.hidden, q, qkv_bias),
        Linear("self_attn.k_proj", s.hidden, kv, qkv_bias),
        Linear("self_attn.v_proj", s.hidden, kv, qkv_bias),
        Linear(f"self_attn.{family.out_name}", q, s.hidden, out_bias),
    )
    norms = tuple(t for name in family.block_norms for t in _norm(config, family, name, s.hidden))
    return Blueprint(
        layers=s.layers,
        block_prefix="model.layers",
        linears=attention + _mlp(config, family, s),
        block_tensors=norms + _qk_norms(family, s, q, kv) + family.extra(config, s),
        outer=(*_ends(s, "model.embed_tokens"), *_norm(config, family, "model.norm", s.hidden)),
        is_gated_mlp=family.mlp in ("gated", "moe"),
    )


def _mlp(config: Config, family: Decoder, s: Sizes) -> tuple[Linear, ...]:
    bias = _flag(config, family.mlp_bias)
    if family.mlp == "gated":
        return (
            Linear("mlp.gate_proj", s.hidden, s.inner, bias),
            Linear("mlp.up_proj", s.hidden, s.inner, bias),
            Linear("mlp.down_proj", s.inner, s.hidden, bias),
        )
    names = {"plain": ("up_proj", "down_proj"), "fc": ("fc1", "fc2"), "c_fc": ("c_fc", "c_proj")}.get(
        family.mlp
    )
    if names is None:
        return ()
    return Linear(f"mlp.{names[0]}", s.hidden, s.inner, bias), Linear(
        f"mlp.{names[1]}", s.inner, s.hidden, bias
    )


def _norm(config: Config, family: Decoder, name: str, size: int) -> tuple[Tensor, ...]:
    if not family.norm_has_weight:
        return ()
    weight = Tensor(f"{name}.weight", (size,), "norm")
    return (
        (weight, Tensor(f"{name}.bias", (size,), "norm"))
        if _flag(config, family.norm_has_bias)
        else (weight,)
    )


def _qk_norms(family: Decoder, s: Sizes, q: int, kv: int) -> tuple[Tensor, ...]:
    if not family.qk_norm:
        return ()
    q_size, k_size = (s.head_dim, s.head_dim) if family.qk_norm == "head" else (q, kv)
    return (
        Tensor("self_attn.q_norm.weight", (q_size,), "norm"),
        Tensor("self_attn.k_norm.weight", (k_size,), "norm"),
    )


def _ends(s: Sizes, embedding: str, head: str = "lm_head") -> tuple[Tensor, ...]:
    inputs = Tensor(f"{embedding}.weight", (s.vocab, s.hidden), "embedding")
    return (inputs,) if s.is_tied else (inputs, Tensor(f"{head}.weight", (s.vocab, s.hidden), "head"))


def _experts(config: Config, s: Sizes) -> tuple[Tensor, ...]:
    """Experts live in fused three-dimensional parameters that bitsandbytes does not quantize (transformers 5)."""
    count = _number(config, "num_local_experts", "num_experts")
    inner = _optional(config, "moe_intermediate_size") or s.inner
    return (
        Tensor("mlp.gate.weight", (count, s.hidden), "router"),
        Tensor("mlp.experts.gate_up_proj", (count, 2 * inner, s.hidden), "expert"),
        Tensor("mlp.experts.down_proj", (count, s.hidden, inner), "expert"),
    )


def _phi3(config: Config) -> Blueprint:
    s = sizes_of(config)
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    return Blueprint(
        layers=s.layers,
        block_prefix="model.layers",
        linears=(
            Linear("self_attn.qkv_proj", s.hidden, q + 2 * kv),
            Linear("self_attn.o_proj", q, s.hidden),
            Linear("mlp.gate_up_proj", s.hidden, 2 * s.inner),
            Linear("mlp.down_proj", s.inner, s.hidden),
        ),
        block_tensors=tuple(
            Tensor(f"{n}.weight", (s.hidden,), "norm")
            for n in ("input_layernorm", "post_attention_layernorm")
        ),
        outer=(*_ends(s, "model.embed_tokens"), Tensor("model.norm.weight", (s.hidden,), "norm")),
    )


def _phi(config: Config) -> Blueprint:
    found = _decoder(
        config,
        Decoder(
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            mlp="fc",
            out_name="dense",
            block_norms=("input_layernorm",),
            norm_has_bias=True,
        ),
    )
    vocab = _number(config, "vocab_size")
    outer = tuple(
        Tensor(t.path.replace("model.norm", "model.final_layernorm"), t.shape, t.role) for t in found.outer
    )
    return Blueprint(
        found.layers, found.block_prefix, found.linears, found.block_tensors,
        (*outer, Tensor("lm_head.bias", (vocab,), "head")), is_gated_mlp=False,
    )  # fmt: skip


def _gpt_neox(config: Config) -> Blueprint:
    s = sizes_of(config)
    bias = bool(config.get("attention_bias", True))
    norms = ("input_layernorm", "post_attention_layernorm")
    return Blueprint(
        layers=s.layers,
        block_prefix="gpt_neox.layers",
        linears=(
            Linear("attention.query_key_value", s.hidden, 3 * s.hidden, bias),
            Linear("attention.dense", s.hidden, s.hidden, bias),
            Linear("mlp.dense_h_to_4h", s.hidden, s.inner, has_bias=True),
            Linear("mlp.dense_4h_to_h", s.inner, s.hidden, has_bias=True),
        ),
        block_tensors=_with_biases(norms, s.hidden),
        outer=(*_ends(s, "gpt_neox.embed_in"), *_with_biases(("gpt_neox.final_layer_norm",), s.hidden)),
        is_gated_mlp=False,
    )


def _opt(config: Config) -> Blueprint:
    s = sizes_of(config)
    if config.get("word_embed_proj_dim", s.hidden) != s.hidden or not config.get(
        "do_layer_norm_before", True
    ):
        raise EngineError(
            "model.unsupported", "this OPT model projects its embeddings or normalises after each block, as only OPT-350m does",
            "choose another size",
        )  # fmt: skip
    bias = bool(config.get("enable_bias", True))
    attention = tuple(
        Linear(f"self_attn.{n}", s.hidden, s.hidden, bias) for n in ("k_proj", "v_proj", "q_proj", "out_proj")
    )
    positions = Tensor(
        "model.decoder.embed_positions.weight",
        (_number(config, "max_position_embeddings") + 2, s.hidden),
        "embedding",
    )
    return Blueprint(
        layers=s.layers,
        block_prefix="model.decoder.layers",
        linears=(*attention, Linear("fc1", s.hidden, s.inner, bias), Linear("fc2", s.inner, s.hidden, bias)),
        block_tensors=_with_biases(("self_attn_layer_norm", "final_layer_norm"), s.hidden),
        outer=(
            *_ends(s, "model.decoder.embed_tokens"),
            positions,
            *_with_biases(("model.decoder.final_layer_norm",), s.hidden),
        ),
        is_gated_mlp=False,
    )


def _with_biases(names: tuple[str, ...], size: int) -> tuple[Tensor, ...]:
    return tuple(Tensor(f"{name}.{part}", (size,), "norm") for name in names for part in ("weight", "bias"))


def _flag(config: Config, flag: bool | str) -> bool:
    """A constant of the family, or the name of the config key that decides."""
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag


def _optional(config: Config, *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _number(config: Config, *names: str) -> int:
    value = _optional(config, *names)
    if value is None:
        raise EngineError(
            "model.config",
            f"config.json has no usable {names[0]!r}",
            "check that it belongs to a language model",
        )
    return value


_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_MISTRAL = Decoder()
_TIED_BY_DEFAULT = dict.fromkeys(
    ("gemma", "gemma2", "gemma3_text", "opt", "starcoder2", "cohere", "smollm3"), True
)

DECODERS: dict[str, Decoder] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "mixtral": Decoder(mlp="moe", extra=_experts),
    "qwen2": Decoder(qkv_bias=True),
    "qwen3": Decoder(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head"),
    "qwen3_moe": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", mlp="moe", extra=_experts
    ),
    "gemma": Decoder(qkv_bias="attention_bias", out_bias="attention_bias"),
    "gemma2": Decoder(qkv_bias="attention_bias", out_bias="attention_bias", block_norms=_FOUR_NORMS),
    "gemma3_text": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", block_norms=_FOUR_NORMS, qk_norm="head"
    ),
    "olmo": Decoder(qkv_bias="attention_bias", out_bias="attention_bias", norm_has_weight=False),
    "olmo2": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", block_norms=_POST_NORMS, qk_norm="full"
    ),
    "olmo3": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", block_norms=_POST_NORMS, qk_norm="full"
    ),
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": Decoder(qkv_bias="use_qkv_bias", norm_has_bias=True),
    "starcoder2": Decoder(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", mlp="c_fc", norm_has_bias=True
    ),
    "cohere": Decoder(qkv_bias="attention_bias", out_bias="attention_bias", block_norms=("input_layernorm",)),
}
_OTHERS: dict[str, Callable[[Config], Blueprint]] = {
    "phi3": _phi3,
    "phi": _phi,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
}
REFUSED = {
    "falcon": "its linear layers are of a class of their own that bitsandbytes does not quantize",
    "gpt2": "it keeps its weights transposed, in layers that are not linear layers",
    "gpt_oss": "its experts come in a 4-bit format of their own",
    "mamba": "it is not a transformer; its state-space layers have no adapters here",
    "mamba2": "it is not a transformer; its state-space layers have no adapters here",
    "t5": "it is an encoder-decoder; only decoders are trained here",
    "bart": "it is an encoder-decoder; only decoders are trained here",
    "bert": "it is an encoder; only decoders are trained here",
    "whisper": "it is a speech model; only text decoders are trained here",
}
