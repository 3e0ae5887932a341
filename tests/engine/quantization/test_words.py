"""The report in sentences: what it costs, how sure that is, and what was not measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from qlora_engine.quantization import words
from qlora_engine.quantization.report import (
    HeldOut,
    Measure,
    ModuleErrors,
    QualityReport,
    Score,
    WeightErrors,
    paired,
)
from qlora_engine.quantization.variants import MAIN, Variant, variant_of

NF4 = Variant("nf4", double_quant=True)
TOKENS = tuple(10 + row % 3 for row in range(40))


def score(extra: float, kl: float, *, noise: float = 0.1) -> Score:
    """`extra` nats per token more than 2, with rows that scatter by `noise` around it."""
    rows = tuple(n * (2.0 + extra) + (noise if i % 2 else -noise) for i, n in enumerate(TOKENS))
    reference = tuple(2.0 * n for n in TOKENS)
    mean, error = paired(rows, reference, TOKENS)
    return Score(2.0 + mean, rows, mean, error, kl, 0.9)


def report(costs: dict[str, tuple[float, float]], **changes: Any) -> QualityReport:
    """A report in which each variant costs (loss, KL)."""
    measures = {v.key: Measure(4.127 if v.double_quant else 4.5, 0.09, 20.9, 0.1) for v in MAIN}
    module = ModuleErrors("model.layers.0.mlp.up_proj", 0, 64, 4.0, 1.0, measures)
    weights = WeightErrors(2, (0, 1), 64, (module,), measures, False, 31.0, 1.0)
    scores = {v.key: score(*costs[v.quant_type], noise=NOISE[v.quant_type]) for v in MAIN}
    reference = Score(2.0, tuple(2.0 * n for n in TOKENS))
    held_out = HeldOut("rows", "0" * 64, 40, True, False, TOKENS, reference, scores, 1.0)
    values: dict[str, Any] = {
        "model": "m", "base_sha256": "", "device": "cpu", "compute_dtype": "float32", "stored_dtype": "BF16",
        "weights": weights, "held_out": held_out, "why_no_held_out": "", "notices": (), "versions": {}, "unix_time": 0.0,
    }  # fmt: skip
    return QualityReport(**{**values, **changes})


NOISE = {"nf4": 0.1, "fp4": -0.1, "int4": 0.1}
PAPER = {"nf4": (0.01, 0.01), "fp4": (0.05, 0.05), "int4": (0.09, 0.09)}


def text(found: QualityReport) -> str:
    return " ".join(words.sentences(found, NF4))


def test_the_cost_is_told_with_its_doubt() -> None:
    told = words.sentences(report(PAPER), NF4)[0]
    assert "On 40 rows of your data (439 trained tokens) the 16-bit loss is 2.000" in told
    assert "NF4 with double quantization costs 0.010 ± 0.001 (+0.5 %)" in told
    assert "stored likewise, FP4 0.050 ± 0.001 (+2.5 %) and linear int4 0.090 ± 0.001 (+4.5 %)." in told


def test_the_paper_is_confirmed_only_where_the_rows_can_tell() -> None:
    assert "The paper's order holds here" in text(report(PAPER))
    near = {"nf4": (0.0100, 0.01), "fp4": (0.0101, 0.05), "int4": (0.0102, 0.09)}
    assert "too few to be sure" in text(report(near))


def test_another_order_is_told_as_it_is() -> None:
    told = text(report({"nf4": (0.3, 0.3), "fp4": (0.2, 0.9), "int4": (0.0, 1.0)}))
    assert "is not found here: worst first, it is NF4 with double quantization, FP4, linear int4" in told
    assert "linear int4 1.000, FP4 0.900, NF4 with double quantization 0.300" in told
    assert "trust this one" in told


def test_the_saving_of_double_quantization_is_told() -> None:
    assert "saves 0.373 bits per parameter" in text(report(PAPER))
    assert "no more than chance" in text(report(PAPER))


def test_weights_that_were_4_bit_before_are_told() -> None:
    found = report(PAPER)
    assert "stored in 4 bits before" not in text(found)
    before = replace(found, weights=replace(found.weights, distinct_in_32=11.4))
    assert "of 32 neighbours only 11 differ" in text(before)


def test_a_report_without_loss_says_why() -> None:
    assert "The loss was not measured: no room." in text(
        report(PAPER, held_out=None, why_no_held_out="no room")
    )


def test_the_error_of_a_mean_over_rows_of_one_length_is_the_usual_one() -> None:
    differences = [0.3, -0.1, 0.5, 0.1]
    mean, error = paired([10 * d for d in differences], [0.0] * 4, [10] * 4)
    assert mean == pytest.approx(0.2)
    deviation = math.sqrt(sum((d - 0.2) ** 2 for d in differences) / 3)
    assert error == pytest.approx(deviation / 2)
    assert paired([1.0], [0.5], [5]) == (0.1, None)


def test_a_key_names_its_variant() -> None:
    assert all(variant_of(variant.key) == variant for variant in MAIN)
