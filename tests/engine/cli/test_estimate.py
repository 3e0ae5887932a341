"""`qlora estimate`: the document's shape, the options' effect, and the verdict in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli.commands.estimate import verdict

PARTS = {
    "quantized_weights",
    "quantization_constants",
    "unquantized_weights",
    "adapters",
    "gradients",
    "optimizer_resident",
    "optimizer_pageable",
    "activations",
    "step_temporary",
    "allocator_rounding",
    "device_context",
}


def test_the_document_has_the_promised_shape(qlora: Any, tiny_model: Path) -> None:
    document = qlora("estimate", tiny_model, "--json").document
    for side in (document["double_quant"], document["single_quant"]):
        assert set(side["parts"]) == PARTS
        assert set(side["device_bytes"]) == {"low", "likely", "high"}
        assert side["source"] == "closed-form"
        assert side["peak_bytes"] == sum(side["parts"].values()) - side["parts"]["device_context"]
    assert set(document["compare"]) == {"lora_16bit", "full_16bit"}
    assert set(document["fits"][0]) == {"gpu", "usable_bytes", "double_quant", "single_quant"}
    assert document["parameters"] > document["quantized_parameters"] > 0


def test_a_type_without_a_formula_is_rehearsed_by_itself_once(qlora: Any, tmp_path: Path) -> None:
    from qlora_engine.architectures import trial  # imports torch

    folder = trial.make("bloom", tmp_path / "bloom")
    asked = ("estimate", folder, "--seq-len", "384", "--device", "cpu", "--json")
    rough = qlora(*asked, "--no-rehearse").document["double_quant"]
    found = qlora(*asked).document["double_quant"]
    again = qlora(*asked).document["double_quant"]
    assert [one["source"] for one in (rough, found, again)] == ["closed-form", "rehearsal", "closed-form"]
    assert again["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.05)


@pytest.mark.starter
@pytest.mark.parametrize(
    ("option", "part"),
    [
        (("--seq-len", "1024"), "activations"),
        (("--micro-batch", "4"), "activations"),
        (("--rank", "64"), "adapters"),
        (("--targets", "attention"), "adapters"),
        (("--targets", "q_proj,v_proj"), "adapters"),
        (("--optimizer", "paged_adamw_32bit"), "optimizer_resident"),
        (("--no-checkpointing",), "activations"),
        (("--loss", "full"), "step_temporary"),
        (("--adapter-dtype", "bf16"), "adapters"),
        (("--upcast-unquantized",), "unquantized_weights"),
        (("--device", "cpu"), "device_context"),
        (("--set", "lora.rank=4"), "adapters"),
    ],
)
def test_every_option_changes_its_part(option: tuple[str, ...], part: str, qlora: Any) -> None:
    before = qlora("estimate", "starter", "--json").document
    after = qlora("estimate", "starter", *option, "--json").document
    assert after["double_quant"]["parts"][part] != before["double_quant"]["parts"][part]


def test_the_table_in_words(qlora: Any, tiny_model: Path) -> None:
    result = qlora("estimate", tiny_model, "--gpu", "RTX 4090")
    assert result.code == 0, result.err
    assert "quantization constants" in result.out
    assert "RTX 4090: fits with" in result.out
    assert "to spare" in result.out
    assert "largest that fits, all else as it is: " in result.out
    assert "device context: not measured: 140 MiB to 1.4 GiB" in result.out
    assert "experts" not in result.out


def test_it_says_where_experts_are_and_in_how_many_bits(qlora: Any) -> None:
    asked = ("estimate", "mixtral-8x7b", "--offline")
    assert "experts: 45.10 B parameters in 4 bits, on the device" in qlora(*asked).out
    sixteen = qlora(*asked, "--set", "quantization.experts=16bit").out
    assert "experts: 45.10 B parameters stay in 16 bits" in sixteen
    away = qlora(*asked, "--set", "quantization.expert_placement=host").out
    assert "of them wait in the computer's memory" in away


def test_one_gpu_is_asked_for(qlora: Any, tiny_model: Path) -> None:
    document = qlora("estimate", tiny_model, "--gpu", "rtx 4090", "--json").document
    assert [fit["gpu"] for fit in document["fits"]] == ["RTX 4090"]
    assert document["largest"]["seq_len"] == 256  # all that the model knows
    assert document["largest"]["model"]
    result = qlora("estimate", tiny_model, "--gpu", "RTX 4091")
    assert result.code == 2
    assert "did you mean" in result.error


def asked(likely: int, low: int, *, fits: bool) -> dict[str, Any]:
    gib = 1024**3
    return {
        "settings": {"device": "cuda"},
        "double_quant": {"device_bytes": {"low": low * gib, "likely": likely * gib, "high": 99 * gib}},
        "fits": [{"gpu": "G", "usable_bytes": 24 * gib, "double_quant": fits, "single_quant": False}],
        "advice": [{"change": "micro-batch 2 -> 1", "saves_bytes": 4 * gib}],
    }


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (asked(20, 19, fits=True), ["G: fits with 4.00 GiB to spare of 24.00 GiB usable", "without double"]),
        (asked(27, 26, fits=False), ["27.00 GiB of 24.00 GiB", "micro-batch 2 -> 1 saves 4.00 GiB"]),
        (asked(25, 23, fits=False), ["only if the low end holds"]),
    ],
)
def test_the_verdict_in_words(document: dict[str, Any], words: list[str]) -> None:
    text = "\n".join(verdict(document, "G"))
    for word in words:
        assert word in text
