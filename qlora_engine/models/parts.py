"""What a model is made of, as values: linear layers, stacked experts, other tensors, buffers, and all of it together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

EXPERTS_IN_4_BITS = True
"""Whether loading quantizes stacked experts, unless `quantization.experts` says otherwise."""


@dataclass(frozen=True)
class LinearFact:
    """One kind of linear layer. `path` has `*` for the block's number; `count` is how many the model has. `is_reached`:
    gradients come there when the model predicts text, so an adapter would learn."""

    name: str
    path: str
    in_features: int
    out_features: int
    count: int
    has_bias: bool
    is_quantized: bool
    is_reached: bool = True

    @property
    def weights(self) -> int:
        """Weight elements of all of them."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class StackedFact:
    """The weights of all experts of a block in one parameter, `shape` as it is stored: experts first.

    `is_transposed`: (experts, in, out) instead of (experts, out, in). `path` ends in the parameter's own name.
    """

    name: str
    path: str
    shape: tuple[int, int, int]
    count: int
    is_transposed: bool
    is_quantized: bool

    @property
    def experts(self) -> int:
        return self.shape[0]

    @property
    def in_features(self) -> int:
        return self.shape[1] if self.is_transposed else self.shape[2]

    @property
    def out_features(self) -> int:
        return self.shape[2] if self.is_transposed else self.shape[1]

    @property
    def weights(self) -> int:
        """Weight elements of all of them."""
        return math.prod(self.shape) * self.count


@dataclass(frozen=True)
class TensorFact:
    """One kind of tensor left in 16 bits. `role`: embedding, head, norm, bias, router, expert, kernel, other.

    `why` says for a linear layer's weight what keeps it out of 4 bits; `is_fp32`: fp32 whatever the compute type.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    role: str
    why: str = ""
    is_fp32: bool = False

    @property
    def elements(self) -> int:
        """Elements of all of them."""
        return self.count * math.prod(self.shape)


@dataclass(frozen=True)
class BufferFact:
    """A tensor that is no parameter: rotary tables, masks. `is_stored`: it is in the files."""

    name: str
    shape: tuple[int, ...]
    count: int
    dtype: str
    itemsize: int
    is_stored: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.count * math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class ModelFacts:
    """What memory and speed depend on. `stored_*` and `path` are None for models known by name only."""

    name: str
    origin: str
    path: str | None
    revision: str | None
    architecture: str
    model_type: str
    config: Mapping[str, Any]
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    is_tied: bool
    is_gated_mlp: bool
    experts: int | None
    experts_per_token: int | None
    sliding_window: int | None
    linears: tuple[LinearFact, ...]
    unquantized: tuple[TensorFact, ...]
    stacked: tuple[StackedFact, ...] = ()
    buffers: tuple[BufferFact, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    """Names of parameters that are one tensor."""
    blocks: str = ""
    """Path of the list of decoder blocks."""
    source: str = "table"
    """Where the parts come from: `table` (counted here), `class` (built by transformers), `files` (their headers)."""
    new_rows: int = 0
    """Of the rows of the embeddings, so many are not in the files: loading adds them, and they are trained."""
    tokenizer_rows: int | None = None
    """Rows of the embeddings that the tokenizer beside the weights needs; None where nobody has looked."""
    stored_bytes: int | None = None
    stored_dtype: str | None = None
    packing: str = ""
    """How the weights come quantized, where they do (`models.packing`)."""
    licence: str | None = None
    chat_template: str | None = None

    @property
    def quantized_parameters(self) -> int:
        """Weights stored in 4 bits: every linear layer but the head, and the experts."""
        linears = sum(linear.weights for linear in self.linears if linear.is_quantized)
        return linears + sum(one.weights for one in self.stacked if one.is_quantized)

    @property
    def unquantized_parameters(self) -> int:
        return sum(tensor.elements for tensor in self.sixteen_bit)

    @property
    def sixteen_bit(self) -> tuple[TensorFact, ...]:
        """Every tensor left in 16 bits, experts among them where they are not quantized."""
        experts = (
            TensorFact(one.path, one.shape, one.count, "expert")
            for one in self.stacked
            if not one.is_quantized
        )
        return (*self.unquantized, *experts)

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self.quantized_parameters + self.unquantized_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses: of the experts those that it is sent to."""
        resting = 0.0
        for one in self.stacked:
            used = min(self.experts_per_token or one.experts, one.experts)
            resting += one.weights * (1 - used / one.experts)
        return self.parameters - round(resting)


def facts_to_dict(facts: ModelFacts) -> dict[str, Any]:
    """JSON-ready form, with the derived totals."""
    totals = {
        "parameters": facts.parameters,
        "active_parameters": facts.active_parameters,
        "quantized_parameters": facts.quantized_parameters,
        "unquantized_parameters": facts.unquantized_parameters,
    }
    return {**asdict(facts), **totals}


def facts_from_dict(plain: Mapping[str, Any]) -> ModelFacts:
    """The facts of `facts_to_dict`."""
    values = {k: v for k, v in plain.items() if k in ModelFacts.__dataclass_fields__}
    return ModelFacts(**{**values, **parts_from_dict(plain)})


def parts_from_dict(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of parts, out of JSON."""
    return {
        "linears": tuple(LinearFact(**entry) for entry in plain["linears"]),
        "unquantized": tuple(TensorFact(**_shaped(entry)) for entry in plain["unquantized"]),
        "stacked": tuple(StackedFact(**_shaped(entry)) for entry in plain.get("stacked", ())),
        "buffers": tuple(BufferFact(**_shaped(entry)) for entry in plain.get("buffers", ())),
        "tied": tuple(tuple(names) for names in plain.get("tied", ())),
    }


def pattern(name: str) -> str:
    """`model.layers.3.mlp` -> `model.layers.*.mlp`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _shaped(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "shape": tuple(entry["shape"])}
