"""Peaks besides the training step's: loading, evaluating, generating, saving, resuming, and the host's while loading.

Pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import experts, static
from qlora_engine.memory.activations import CHUNK_TOKENS
from qlora_engine.memory.passes import FP32, Shape
from qlora_engine.models.spec import ModelFacts

HOST_BASE_BYTES = 1_300 * 1024**2
"""Resident memory of a process that has imported the ML stack and loaded nothing (measured: 0.9 to 1.4 GiB)."""
STATIC = ("quantized_weights", "quantization_constants", "unquantized_weights", "allocator_rounding")
TRAINED = ("adapters", "optimizer_resident", "optimizer_pageable")


def peaks(
    facts: ModelFacts, config: TrainingConfig, shape: Shape, parts: Mapping[str, int], answer_tokens: int
) -> dict[str, int]:
    """Bytes of tensors by moment; `host_loading` is the computer's own memory."""
    base = sum(parts[name] for name in STATIC)
    trained = sum(parts[name] for name in TRAINED)
    weight = _largest_weight(facts)
    dequantized = weight * shape.element_bytes + (
        weight // static.BLOCK * FP32 if shape.is_double_quant else 0
    )
    c, h = shape.element_bytes, facts.hidden_size
    chunk = min(CHUNK_TOKENS, shape.tokens)
    stream = shape.tokens * (3 * h * shape.stream_bytes + 2 * facts.intermediate_size * c)
    logits = 2 * FP32 * facts.vocab_size
    per_token = 2 * facts.kv_heads * facts.head_dim * c * facts.layers
    saved = parts["adapters"] + parts["optimizer_resident"] + parts["optimizer_pageable"]
    on_host = base if not shape.is_cuda else 0
    if config.quantization.expert_placement == "host":
        on_host += sum(experts.moved_to_host(facts, is_double_quant=shape.is_double_quant))
    return {
        "loading": base + weight * c + FP32 * weight // static.BLOCK,
        "evaluating": base + trained + max(stream + dequantized, stream + chunk * logits),
        "generating": base + trained + per_token * (shape.seq_len + answer_tokens) + dequantized + logits,
        "saving": base + trained + (0 if shape.is_cuda else saved),
        "resuming": base + trained + (parts["adapters"] if shape.is_cuda else saved),
        "host_loading": HOST_BASE_BYTES + on_host + _largest_tensor(facts) * c,
    }


def _largest_weight(facts: ModelFacts) -> int:
    linears = (t.in_features * t.out_features for t in facts.linears if t.is_quantized)
    single = (math.prod(t.shape[1:]) for t in facts.stacked if t.is_quantized)
    return max((*linears, *single), default=0)


def _largest_tensor(facts: ModelFacts) -> int:
    """As files hold it: experts may be stored stacked."""
    others = max((t.elements // t.count for t in facts.sixteen_bit), default=0)
    stacks = max((math.prod(t.shape) for t in facts.stacked), default=0)
    return max(_largest_weight(facts), stacks, others)
