"""The shape of a model's tensors from its `config.json`: pure arithmetic, no torch, no weights.

A fast path for the commonest families, which the tests hold equal to the classes that transformers builds; every other
type is read off its class (`classes.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from qlora_engine.models.blueprints import (
    Blueprint,
    Config,
    Decoder,
    Linear,
    Sizes,
    Tensor,
    command_r_norms,
    decoder_blueprint,
    ends,
    experts,
    required_number,
    whole_number,
    with_biases,
)


def sizes_of(config: Config) -> Sizes:
    """Read the shared numbers, whatever the family calls them.

    Raises:
        EngineError: one is missing or not a positive number.
    """
    config = with_defaults(config)
    hidden = required_number(config, "hidden_size", "n_embd", "d_model")
    heads = required_number(config, "num_attention_heads", "n_head")
    return Sizes(
        hidden=hidden,
        layers=required_number(config, "num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=whole_number(config, "num_key_value_heads") or heads,
        head_dim=whole_number(config, "head_dim") or hidden // heads,
        inner=whole_number(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden,
        vocab=required_number(config, "vocab_size"),
        is_tied=bool(
            config.get("tie_word_embeddings", _TIED_BY_DEFAULT.get(str(config.get("model_type")), False))
        ),
    )


def with_defaults(config: Config) -> Config:
    """`config`, completed by what its family's class assumes."""
    family = DECODERS.get(str(config.get("model_type")))
    given = {key: value for key, value in config.items() if value is not None}
    return {**family.defaults, **given} if family is not None else config


def is_counted(config: Config) -> bool:
    """True when the table holds the type, in a variant whose tensors are those counted here."""
    kind = str(config.get("model_type", ""))
    if kind == "qwen3_moe" and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        return False
    if kind in ("phi", "stablelm") and config.get("qk_layernorm"):
        return False
    if kind == "opt":
        hidden = config.get("hidden_size")
        is_plain = config.get("word_embed_proj_dim", hidden) == hidden
        return is_plain and bool(config.get("do_layer_norm_before", True))
    return kind in DECODERS or kind in _OTHERS


def blueprint_of(config: Config) -> Blueprint:
    """The tensors of the model that `config`, a counted one, describes.

    Raises:
        EngineError: a number is missing.
    """
    kind = str(config.get("model_type", ""))
    if kind in DECODERS:
        return decoder_blueprint(with_defaults(config), sizes_of(config), DECODERS[kind])
    return _OTHERS[kind](config)


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
        outer=(*ends(s, "model.embed_tokens"), Tensor("model.norm.weight", (s.hidden,), "norm")),
    )


def _phi(config: Config) -> Blueprint:
    found = decoder_blueprint(
        config,
        sizes_of(config),
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
    vocab = required_number(config, "vocab_size")
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
        block_tensors=with_biases(norms, s.hidden),
        outer=(*ends(s, "gpt_neox.embed_in"), *with_biases(("gpt_neox.final_layer_norm",), s.hidden)),
        is_gated_mlp=False,
    )


def _opt(config: Config) -> Blueprint:
    s = sizes_of(config)
    bias = bool(config.get("enable_bias", True))
    attention = tuple(
        Linear(f"self_attn.{n}", s.hidden, s.hidden, bias) for n in ("k_proj", "v_proj", "q_proj", "out_proj")
    )
    positions = Tensor(
        "model.decoder.embed_positions.weight",
        (required_number(config, "max_position_embeddings") + 2, s.hidden),
        "embedding",
    )
    return Blueprint(
        layers=s.layers,
        block_prefix="model.decoder.layers",
        linears=(*attention, Linear("fc1", s.hidden, s.inner, bias), Linear("fc2", s.inner, s.hidden, bias)),
        block_tensors=with_biases(("self_attn_layer_norm", "final_layer_norm"), s.hidden),
        outer=(
            *ends(s, "model.decoder.embed_tokens"),
            positions,
            *with_biases(("model.decoder.final_layer_norm",), s.hidden),
        ),
        is_gated_mlp=False,
    )


_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_MISTRAL = Decoder()
_GLM = {"attention_bias": True, "head_dim": 128}
_TIED_BY_DEFAULT = dict.fromkeys(
    ("gemma", "gemma2", "gemma3_text", "opt", "starcoder2", "cohere", "cohere2", "smollm3", "ernie4_5"), True
)

DECODERS: dict[str, Decoder] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "mixtral": Decoder(mlp="moe", extra=experts),
    "qwen2": Decoder(qkv_bias=True),
    "qwen3": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", defaults={"head_dim": 128}
    ),
    "qwen3_moe": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", mlp="moe", extra=experts
    ),
    "gemma": Decoder(qkv_bias="attention_bias", out_bias="attention_bias", defaults={"head_dim": 256}),
    "gemma2": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        block_norms=_FOUR_NORMS,
        defaults={"head_dim": 256},
    ),
    "gemma3_text": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        block_norms=_FOUR_NORMS,
        qk_norm="head",
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
    ),
    "glm": Decoder(qkv_bias="attention_bias", mlp="fused", defaults=_GLM),
    "glm4": Decoder(
        qkv_bias="attention_bias",
        mlp="fused",
        block_norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "post_self_attn_layernorm",
            "post_mlp_layernorm",
        ),
        defaults=_GLM,
    ),
    "exaone4": Decoder(block_norms=_POST_NORMS, qk_norm="head"),
    "hunyuan_v1_dense": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm="head",
        qk_norm_names=("query_layernorm", "key_layernorm"),
    ),
    "arcee": Decoder(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", mlp="plain"),
    "nemotron": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        mlp="plain",
        norm_has_bias=True,
    ),
    "ernie4_5": Decoder(qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias"),
    "seed_oss": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_out_bias",
        mlp_bias="mlp_bias",
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "helium": Decoder(qkv_bias="attention_bias", mlp_bias="mlp_bias", defaults={"head_dim": 128}),
    "ministral3": _MISTRAL,
    "olmoe": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="full", mlp="moe", extra=experts
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
    "stablelm": Decoder(qkv_bias="use_qkv_bias", norm_has_bias=True, has_parallel_form=True),
    "starcoder2": Decoder(
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        mlp="c_fc",
        norm_has_bias=True,
        defaults={"use_bias": True},
    ),
    "cohere": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        block_norms=("input_layernorm",),
        extra=command_r_norms,
    ),
    "cohere2": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", block_norms=("input_layernorm",)
    ),
}
_OTHERS: dict[str, Callable[[Config], Blueprint]] = {
    "phi3": _phi3,
    "phi": _phi,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
}
