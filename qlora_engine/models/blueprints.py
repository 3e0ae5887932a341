"""The parts that model families are put together from: a block's linear layers, norms, ends. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.errors import EngineError

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
    has_parallel_form: bool = False
    qk_norm: str = ""
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm")
    out_name: str = "o_proj"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of the family's config class where a config.json leaves them out."""
    extra: Callable[[Config, Sizes], tuple[Tensor, ...]] = field(default=lambda config, sizes: ())


def decoder_blueprint(config: Config, s: Sizes, family: Decoder) -> Blueprint:
    """All tensors of a Llama-like model."""
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    has_one_norm = bool(config.get("use_parallel_residual")) and family.has_parallel_form
    norm_names = family.block_norms[:1] if has_one_norm else family.block_norms
    qkv_bias, out_bias = _flag(config, family.qkv_bias), _flag(config, family.out_bias)
    attention = (
        Linear("self_attn.q_proj", s.hidden, q, qkv_bias),
        Linear("self_attn.k_proj", s.hidden, kv, qkv_bias),
        Linear("self_attn.v_proj", s.hidden, kv, qkv_bias),
        Linear(f"self_attn.{family.out_name}", q, s.hidden, out_bias),
    )
    norms = tuple(t for name in norm_names for t in _norm(config, family, name, s.hidden))
    return Blueprint(
        layers=s.layers,
        block_prefix="model.layers",
        linears=attention + _mlp(config, family, s),
        block_tensors=norms + _qk_norms(family, s, q, kv) + family.extra(config, s),
        outer=(*ends(s, "model.embed_tokens"), *_norm(config, family, "model.norm", s.hidden)),
        is_gated_mlp=family.mlp in ("gated", "fused", "moe"),
    )


def experts(config: Config, s: Sizes) -> tuple[Tensor, ...]:
    """Experts live in fused three-dimensional parameters that bitsandbytes does not quantize (transformers 5)."""
    count = required_number(config, "num_local_experts", "num_experts")
    inner = whole_number(config, "moe_intermediate_size") or s.inner
    return (
        Tensor("mlp.gate.weight", (count, s.hidden), "router"),
        Tensor("mlp.experts.gate_up_proj", (count, 2 * inner, s.hidden), "expert"),
        Tensor("mlp.experts.down_proj", (count, s.hidden, inner), "expert"),
    )


def command_r_norms(config: Config, s: Sizes) -> tuple[Tensor, ...]:
    """Command R+ normalises queries and keys, each head with weights of its own."""
    if not config.get("use_qk_norm"):
        return ()
    return (
        Tensor("self_attn.q_norm.weight", (s.heads, s.head_dim), "norm"),
        Tensor("self_attn.k_norm.weight", (s.kv_heads, s.head_dim), "norm"),
    )


def ends(s: Sizes, embedding: str, head: str = "lm_head") -> tuple[Tensor, ...]:
    inputs = Tensor(f"{embedding}.weight", (s.vocab, s.hidden), "embedding")
    return (inputs,) if s.is_tied else (inputs, Tensor(f"{head}.weight", (s.vocab, s.hidden), "head"))


def with_biases(names: tuple[str, ...], size: int) -> tuple[Tensor, ...]:
    return tuple(Tensor(f"{name}.{part}", (size,), "norm") for name in names for part in ("weight", "bias"))


def whole_number(config: Config, *names: str) -> int | None:
    """The first of `names` that holds a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def required_number(config: Config, *names: str) -> int:
    value = whole_number(config, *names)
    if value is None:
        raise EngineError(
            "model.config",
            f"config.json has no usable {names[0]!r}",
            "check that it belongs to a language model",
        )
    return value


def _mlp(config: Config, family: Decoder, s: Sizes) -> tuple[Linear, ...]:
    bias = _flag(config, family.mlp_bias)
    if family.mlp == "gated":
        return (
            Linear("mlp.gate_proj", s.hidden, s.inner, bias),
            Linear("mlp.up_proj", s.hidden, s.inner, bias),
            Linear("mlp.down_proj", s.inner, s.hidden, bias),
        )
    if family.mlp == "fused":
        return (
            Linear("mlp.gate_up_proj", s.hidden, 2 * s.inner, bias),
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
    q_name, k_name = family.qk_norm_names
    return (
        Tensor(f"self_attn.{q_name}.weight", (q_size,), "norm"),
        Tensor(f"self_attn.{k_name}.weight", (k_size,), "norm"),
    )


def _flag(config: Config, flag: bool | str) -> bool:
    """A constant of the family, or the name of the config key that decides."""
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag
