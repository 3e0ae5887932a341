"""How a GGUF file scales its positions, as a transformers config says it.

transformers 5 drops the scaling of a GGUF file without a word, and a Llama 3.1 converted so computes every position a
little wrong. What cannot be carried over exactly is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.models.gguf_header import GgufHeader

# Of Llama 3.1 to 3.3; the files do not name them, so they are recognised by what they give.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
TOLERANCE = 1e-3


def scaling_of(header: GgufHeader, rope_freqs: Sequence[float] | None) -> dict[str, Any] | None:
    """`rope_parameters` to add to the converted config, or None when positions are not scaled.

    Args:
        header: of the file.
        rope_freqs: the values of `rope_freqs.weight`, one per pair of a head's dimensions, where the file has them.

    Raises:
        EngineError: a scaling that is not carried over.
    """
    architecture = header.fields.get("general.architecture")
    kind = header.fields.get(f"{architecture}.rope.scaling.type", "none")
    factor = header.fields.get(f"{architecture}.rope.scaling.factor")
    theta = float(header.fields.get(f"{architecture}.rope.freq_base", 10_000.0))
    if "rope_factors_long.weight" in header.tensors:
        kind = "longrope"
    if rope_freqs is not None:
        return llama3_scaling(rope_freqs, theta)
    if kind == "linear" and isinstance(factor, int | float) and factor > 0:
        return {"rope_type": "linear", "factor": float(factor)} if factor != 1 else None
    if kind != "none":
        raise _refusal(str(kind))
    return None


def llama3_scaling(rope_freqs: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The `llama3` scaling that gives these divisors.

    Raises:
        EngineError: no such scaling does.
    """
    factor = max(rope_freqs)
    if factor == min(rope_freqs) == 1.0:
        return None
    expected = llama3_divisors(2 * len(rope_freqs), theta, factor)
    if any(abs(a - b) > TOLERANCE * b for a, b in zip(rope_freqs, expected, strict=True)):
        raise _refusal("rope_freqs")
    return {"rope_type": "llama3", "factor": float(factor), **LLAMA3}


def llama3_divisors(head_dim: int, theta: float, factor: float) -> list[float]:
    """What each pair's frequency is divided by (transformers `_compute_llama3_parameters`)."""
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    context = LLAMA3["original_max_position_embeddings"]
    divisors = []
    for pair in range(head_dim // 2):
        turns = context * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def _refusal(kind: str) -> EngineError:
    return EngineError(
        "model.unsupported",
        f"this GGUF file scales its positions in a way ({kind}) that a conversion would lose",
        "use the model's safetensors version",
    )
