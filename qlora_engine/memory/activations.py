"""Bytes of activations and of the step's largest temporary, in closed form. Pure arithmetic, no torch.

What autograd keeps was read off transformers' decoder blocks, PEFT's LoRA layers and bitsandbytes' 4-bit matmul, which
keeps the packed weight only. Bytes are per token of the micro-batch unless named otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_engine.models.spec import LinearFact, ModelFacts

FP32 = 4
FULL_LOGIT_BYTES = 17
"""Per token and vocabulary entry with full-logit cross entropy: 16-bit logits, their fp32 copy, the log-softmax, its
gradient, and the 16-bit gradient."""
CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class Shape:
    """The micro-batch: rows x tokens, and the bytes of the compute type (2 on a GPU, 4 on the CPU)."""

    micro_batch: int
    seq_len: int
    element_bytes: int
    adapter_bytes: int

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.seq_len


def kept_per_layer(facts: ModelFacts, targets: Sequence[LinearFact], shape: Shape, rank: int) -> int:
    """Bytes that one block keeps for its backward pass when nothing is recomputed."""
    c, q, kv = shape.element_bytes, facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = c * (q + kv + kv + q) + FP32 * facts.heads
    mlp = c * facts.intermediate_size * (3 if facts.is_gated_mlp else 1)
    norms = 2 * FP32 * facts.hidden_size if c != FP32 else 2 * c * facts.hidden_size
    return (attention + mlp + norms + adapter_inputs(targets, shape, rank)) * shape.tokens


def adapter_inputs(targets: Sequence[LinearFact], shape: Shape, rank: int) -> int:
    """Bytes per token that the adapters of one block keep: each casts its input to its own type and keeps the cast,
    and the product with A. In one type the input is shared by the layers that read it."""
    inner = len(targets) * rank * shape.adapter_bytes
    if shape.adapter_bytes == shape.element_bytes:
        return inner + shape.element_bytes * sum({t.in_features for t in targets})
    return inner + shape.adapter_bytes * sum(t.in_features for t in targets)


def kept_at_boundaries(facts: ModelFacts, shape: Shape) -> int:
    """Bytes kept with checkpointing: the input of each block."""
    return facts.layers * facts.hidden_size * shape.element_bytes * shape.tokens


def backward_temporary(facts: ModelFacts, shape: Shape, *, is_double_quant: bool) -> int:
    """Bytes of one block's backward pass beyond what it kept: the largest weight dequantized (with double quantization
    its fp32 absmax too), and the gradients of the widest activations."""
    largest = max((t.in_features * t.out_features for t in facts.linears if t.is_quantized), default=0)
    weight = largest * shape.element_bytes + (largest // 64 * FP32 if is_double_quant else 0)
    widest = max(facts.intermediate_size, facts.hidden_size)
    gradients = (2 * widest + facts.hidden_size) * shape.element_bytes + widest * shape.adapter_bytes
    return weight + gradients * shape.tokens


def loss_temporary(facts: ModelFacts, shape: Shape, kind: str) -> int:
    """Bytes of logits, loss and their gradient. Chunked: fp32 logits and one 16-bit copy of at most 1,024 tokens, and
    the gathered hidden states with their gradient."""
    if kind == "full":
        return FULL_LOGIT_BYTES * shape.tokens * facts.vocab_size
    chunk = min(CHUNK_TOKENS, shape.tokens)
    hidden = 3 * shape.tokens * facts.hidden_size * shape.element_bytes
    return chunk * facts.vocab_size * (FP32 + shape.element_bytes) + hidden
