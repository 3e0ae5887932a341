"""Bytes of experts in 4 bits: kept on the GPU or on the host, with their constants and adapters. Torch-free.

Equal, byte for byte, to what `models.experts.stack` builds: one parameter for all experts of a block, each quantized alone;
the code tables are there once for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from qlora_engine.config import QuantizationSettings, TrainingConfig
from qlora_engine.models.parts import ModelFacts, StackedFact

BLOCK = 64
NESTED_BLOCK = 256
CODE_BYTES = 16 * 4
NESTED_CODE_BYTES = 256 * 4
FP32 = 4
TRACED_EXPERTS = 32
"""A step is counted as if it reached at most so many experts of a block, which share all tokens: what is kept is the same, and
a rehearsal stays quick."""
ONE_BY_ONE = frozenset({
    "inkling", "jetmoe", "llama4", "llama4_text", "longcat_flash", "step3p7", "step3p7_text",
})  # fmt: skip
"""Types whose experts transformers does not compute in groups."""
BLOCKS_ON_DEVICE = 2
"""Of experts on the host, so many blocks are on the GPU: one that computes and one that is coming (models.experts.host)."""


def as_configured(facts: ModelFacts, quantization: QuantizationSettings) -> ModelFacts:
    """`facts` with the experts in as many bits as the settings say."""
    in_4_bits = quantization.experts == "4bit"
    if all(one.is_quantized == in_4_bits for one in facts.stacked):
        return facts
    return replace(facts, stacked=tuple(replace(one, is_quantized=in_4_bits) for one in facts.stacked))


def packed_of(one: StackedFact) -> int:
    """Packed weights of one stack: two to a byte, every expert by itself."""
    return one.experts * -(-math.prod(one.shape[1:]) // 2)


def constants_of(one: StackedFact, *, is_double_quant: bool) -> int:
    """Quantization constants of one stack."""
    blocks = -(-math.prod(one.shape[1:]) // BLOCK)
    if not is_double_quant:
        return one.experts * FP32 * blocks + CODE_BYTES
    nested = -(-blocks // NESTED_BLOCK)
    return one.experts * (blocks + FP32 * nested + FP32) + CODE_BYTES + NESTED_CODE_BYTES


def tensor_sizes(one: StackedFact, *, is_double_quant: bool) -> tuple[int, ...]:
    """Bytes of each tensor of one stack."""
    blocks = -(-math.prod(one.shape[1:]) // BLOCK)
    if not is_double_quant:
        return packed_of(one), one.experts * FP32 * blocks, CODE_BYTES
    nested = -(-blocks // NESTED_BLOCK)
    return (
        packed_of(one), one.experts * blocks, one.experts * FP32 * nested, one.experts * FP32, CODE_BYTES, NESTED_CODE_BYTES,
    )  # fmt: skip


def adapter_tensors(facts: ModelFacts, config: TrainingConfig) -> Iterator[tuple[int, int]]:
    """(elements, count) of the adapters on experts: A is (experts x rank, in), B is (out, rank x experts)."""
    if not config.lora.experts:
        return
    for one in facts.stacked:
        yield config.lora.rank * one.experts * one.in_features, one.count
        yield config.lora.rank * one.experts * one.out_features, one.count


def are_grouped(choice: str, device: str) -> bool:
    """Whether the experts of a block are to be computed together: `training.group_experts`, on `device`."""
    return choice == "on" or (choice == "auto" and device == "cuda")


def grouped_bytes(facts: ModelFacts, tokens: int, element_bytes: int) -> int:
    """What a step of `tokens` takes beyond one that computes experts one by one, when all of a block go together: the larger
    stack dequantized, and each token's rows for all its experts, sorted, multiplied and weighted at once."""
    stacks = [one for one in facts.stacked if one.is_quantized]
    if not stacks or facts.model_type in ONE_BY_ONE:
        return 0
    rows = tokens * (facts.experts_per_token or 1)
    widest = max(max(one.in_features, one.out_features) for one in stacks)
    weights = max(math.prod(one.shape) for one in stacks)
    return element_bytes * (weights + rows * (3 * facts.hidden_size + 2 * widest))


def moved_to_host(facts: ModelFacts, *, is_double_quant: bool) -> tuple[int, int]:
    """(packed weights, constants) that are not on the GPU when experts are kept on the host: all but two blocks of them.
    The code tables stay."""
    packed = constants = 0
    for one in facts.stacked:
        if one.is_quantized:
            away = max(0, one.count - BLOCKS_ON_DEVICE)
            codes = CODE_BYTES + (NESTED_CODE_BYTES if is_double_quant else 0)
            packed += away * packed_of(one)
            constants += away * (constants_of(one, is_double_quant=is_double_quant) - codes)
    return packed, constants
