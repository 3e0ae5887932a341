"""Bytes of what stays for a whole run: packed weights, constants, unquantized weights, adapters. Exact, no torch.

Equal, byte for byte, to the storages that bitsandbytes and PEFT build.
"""

from __future__ import annotations

from collections.abc import Sequence

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import experts
from qlora_engine.models import resizing
from qlora_engine.models.spec import LinearFact, ModelFacts

BLOCK = 64
"""Weights per scale (arXiv 2305.14314, section 3; bitsandbytes functional.py, quantize_4bit)."""
NESTED_BLOCK = 256
"""Scales per second-level scale: the only size that bitsandbytes supports."""
CODE_BYTES = 16 * 4
NESTED_CODE_BYTES = 256 * 4
OFFSET_BYTES = 4
FP32 = 4
ATTENTION_PARENTS = frozenset({"self_attn", "attn", "attention", "self_attention"})
ATTENTION_LEAVES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "Wqkv", "W_pack", "c_attn"}
)  # fmt: skip


def quantized_bytes(facts: ModelFacts) -> int:
    """Packed weights: two to a byte."""
    linears = sum(-(-t.in_features * t.out_features // 2) * t.count for t in facts.linears if t.is_quantized)
    return linears + sum(experts.packed_of(one) * one.count for one in facts.stacked if one.is_quantized)


def buffer_bytes(facts: ModelFacts) -> int:
    """Tensors that are no parameters, as the class makes them: masks, rotary tables. Of families in the table, whose only
    buffers are rotary tables of some hundred bytes, nothing."""
    return sum(buffer.nbytes for buffer in facts.buffers)


def constants_bytes(facts: ModelFacts, *, is_double_quant: bool) -> int:
    """Quantization constants as bitsandbytes keeps them: single: fp32 absmax per 64 weights and the code table;
    double: uint8 per 64, fp32 per 256 blocks, both code tables and the offset. Each layer has tables of its own."""
    linears = sum(
        constants_of(t.in_features * t.out_features, is_double_quant=is_double_quant) * t.count
        for t in facts.linears
        if t.is_quantized
    )
    return linears + sum(
        experts.constants_of(one, is_double_quant=is_double_quant) * one.count
        for one in facts.stacked
        if one.is_quantized
    )


def constants_of(weights: int, *, is_double_quant: bool) -> int:
    """Constants of one weight of that many elements."""
    blocks = -(-weights // BLOCK)
    if not is_double_quant:
        return FP32 * blocks + CODE_BYTES
    return blocks + FP32 * -(-blocks // NESTED_BLOCK) + CODE_BYTES + NESTED_CODE_BYTES + OFFSET_BYTES


def target_linears(facts: ModelFacts, targets: str | Sequence[str]) -> tuple[LinearFact, ...]:
    """The linear layers that get adapters, as `adapters.resolve_targets` chooses them on the built model: by the end of
    their names, or of all that gradients reach."""
    if targets == "all-linear":
        return tuple(t for t in facts.linears if t.is_reached)
    if targets == "attention":
        return tuple(t for t in facts.linears if t.is_reached and is_attention(t.path))
    wanted = (targets,) if isinstance(targets, str) else targets
    return tuple(t for t in facts.linears if any(f".{t.path}".endswith(f".{name}") for name in wanted))


def is_attention(path: str) -> bool:
    """True for the projections of an attention block, whatever the family calls them."""
    parts = path.split(".")
    return parts[-1] in ATTENTION_LEAVES or bool(ATTENTION_PARENTS & set(parts[:-1]))


def adapter_tensors(facts: ModelFacts, config: TrainingConfig) -> list[tuple[int, int]]:
    """(elements, count) of every tensor that is trained: A is (rank, in), B is (out, rank); DoRA adds a magnitude (out); new
    rows of the embeddings."""
    tensors = []
    for linear in target_linears(facts, config.lora.targets):
        tensors.append((config.lora.rank * linear.in_features, linear.count))
        tensors.append((config.lora.rank * linear.out_features, linear.count))
        if config.lora.dora:
            tensors.append((linear.out_features, linear.count))
    return [*tensors, *experts.adapter_tensors(facts, config), *new_row_tensors(facts)]


def new_row_tensors(facts: ModelFacts) -> list[tuple[int, int]]:
    """(elements, count) of the rows that are added to the embeddings, and to a head of its own."""
    tables = resizing.tables(facts) if facts.new_rows else []
    return [(facts.new_rows * one.shape[1], one.count) for one in tables]


GRANULE = 512
"""The CUDA caching allocator rounds every block up to this (c10/cuda/CUDACachingAllocator, kMinBlockSize)."""


def rounding_bytes(facts: ModelFacts, config: TrainingConfig, element: int, *, side: str) -> int:
    """What rounding up every tensor that stays costs."""
    total = 0
    for linear in facts.linears:
        total += linear.count * sum(_excess(size) for size in _tensor_sizes(linear, element, side))
    total += sum(t.count * _excess(t.elements // t.count * element) for t in facts.sixteen_bit)
    for one in facts.stacked:
        if one.is_quantized:
            sizes = experts.tensor_sizes(one, is_double_quant=side == "double_quant")
            total += one.count * sum(_excess(size) for size in sizes)
    adapter = FP32 if config.lora.dtype == "fp32" else 2
    return total + sum(count * _excess(size * adapter) for size, count in adapter_tensors(facts, config))


def _tensor_sizes(linear: LinearFact, element: int, side: str) -> tuple[int, ...]:
    weights = linear.in_features * linear.out_features
    if side not in ("double_quant", "single_quant") or not linear.is_quantized:
        return (weights * element,)
    blocks = -(-weights // BLOCK)
    if side == "single_quant":
        return (-(-weights // 2), FP32 * blocks, CODE_BYTES)
    nested = FP32 * -(-blocks // NESTED_BLOCK)
    return (-(-weights // 2), blocks, CODE_BYTES, nested, NESTED_CODE_BYTES, OFFSET_BYTES)


def _excess(size: int) -> int:
    return -size % GRANULE
