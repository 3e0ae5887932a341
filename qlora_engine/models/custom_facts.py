"""Facts of a model that brings its own code, from the names and shapes in its files: nothing of it is run. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qlora_engine.models import families
from qlora_engine.models.blueprints import whole_number
from qlora_engine.models.files import StoredTensor
from qlora_engine.models.parts import LinearFact, ModelFacts, TensorFact, pattern
from qlora_engine.models.sized import facts_of_sizes

Pattern = tuple[str, tuple[int, ...]]
EMBEDDING = re.compile(r"embed|wte|wpe|word_embeddings")
HEAD = re.compile(r"^(lm_head|output|embed_out)\.")


def facts_from_headers(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    architecture: str,
    tensors: Mapping[str, StoredTensor],
    name: str,
    *,
    origin: str,
) -> ModelFacts:
    """Facts read off the files: a two-dimensional weight inside a block counts as a linear layer.

    Raises:
        EngineError: the config lacks the usual numbers.
    """
    counts = Counter((pattern(n), tensor.shape) for n, tensor in tensors.items())
    linears = tuple(_linears(counts))
    found = facts_of_sizes(
        families.sizes_of(text), text, config, name=name, origin=origin, architecture=architecture, linears=linears,
        is_gated_mlp=any("gate" in linear.name for linear in linears),
        experts=whole_number(text, "num_local_experts", "num_experts", "n_routed_experts"),
    )  # fmt: skip
    is_tied = not any(HEAD.search(n) for n in tensors)
    return replace(found, is_tied=is_tied, unquantized=tuple(_others(counts)), source="files")


def _linears(counts: Counter[Pattern]) -> Iterator[LinearFact]:
    biases = {name for name, _ in counts}
    for (name, shape), count in counts.items():
        if _is_linear(name, shape):
            path = name.removesuffix(".weight")
            yield LinearFact(
                name=path.rsplit(".", 1)[-1],
                path=path,
                in_features=shape[1],
                out_features=shape[0],
                count=count,
                has_bias=f"{path}.bias" in biases,
                is_quantized=True,
            )


def _others(counts: Counter[Pattern]) -> Iterator[TensorFact]:
    for (name, shape), count in counts.items():
        if not _is_linear(name, shape):
            yield TensorFact(name, shape, count, _role(name))


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and ".*." in name and name.endswith(".weight") and not EMBEDDING.search(name)


def _role(name: str) -> str:
    if HEAD.search(name):
        return "head"
    if EMBEDDING.search(name):
        return "embedding"
    if "norm" in name or "ln_" in name:
        return "norm"
    return "bias" if name.endswith(".bias") else "other"
