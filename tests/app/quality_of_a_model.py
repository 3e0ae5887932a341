"""A quality report as the engine gives it, made without measuring: thirty layers of seven modules."""

from __future__ import annotations

import math

from qlora_engine.quantization.report import (
    HeldOut,
    Measure,
    ModuleErrors,
    QualityReport,
    Score,
    WeightErrors,
    paired,
)
from qlora_engine.quantization.variants import MAIN, Options, Variant

LAYERS = 30
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
BASE = {"nf4": 0.092, "fp4": 0.124, "int4": 0.111}
COSTS = {"nf4": (0.012, 0.011), "fp4": (0.051, 0.052), "int4": (0.089, 0.094)}
TOKENS = tuple(20 + row % 7 for row in range(40))


def measure(variant: Variant, factor: float) -> Measure:
    error = BASE[variant.quant_type] * factor * (1 + 0.05 * math.log2(variant.block_size / 64))
    bits = 4 + (8 if variant.double_quant else 32) / variant.block_size
    return Measure(bits, error, -20 * math.log10(error), 0.84 * factor)


def module(layer: int, name: str) -> ModuleErrors:
    factor = 1 + 0.04 * math.sin(layer + len(name)) + (0.6 if (layer, name) == (3, "mlp.down_proj") else 0)
    measures = {v.key: measure(v, factor) for v in Options().variants}
    return ModuleErrors(f"model.layers.{layer}.{name}", layer, 1000, 6.0 * factor, factor, measures)


def score(extra: float, kl: float) -> Score:
    rows = tuple(n * (2.9 + extra) + 0.2 * math.sin(i) for i, n in enumerate(TOKENS))
    mean, error = paired(rows, tuple(2.9 * n for n in TOKENS), TOKENS)
    return Score(2.9 + mean, rows, mean, error, kl, 0.93)


def quality_report() -> QualityReport:
    modules = tuple(module(layer, name) for layer in range(LAYERS) for name in MODULES)
    totals = {v.key: measure(v, 1.0) for v in Options().variants}
    weights = WeightErrors(LAYERS, tuple(range(LAYERS)), 210_000, modules, totals, False, 31.0, 40.0)
    reference = Score(2.9, tuple(2.9 * n for n in TOKENS))
    scores = {v.key: score(*COSTS[v.quant_type]) for v in MAIN}
    held_out = HeldOut("starter", "0" * 64, 40, True, False, TOKENS, reference, scores, 80.0)
    return QualityReport(
        model="starter", base_sha256="0" * 64, device="cpu", compute_dtype="float32", stored_dtype="BF16", weights=weights,
        held_out=held_out, why_no_held_out="", notices=(), versions={}, unix_time=1_764_000_000.0,
    )  # fmt: skip
