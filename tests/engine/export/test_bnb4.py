"""The 4-bit export is what bitsandbytes makes of the merged weights, loads with plain transformers, and says what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_engine.events import Noticed, RunFailed, RunFinished
from qlora_engine.export import pieces
from qlora_engine.export.nf4 import Quantizer, RoundTrip
from qlora_engine.export.weights import Weights
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.engine.export.merged import merged_by_peft
from tests.engine.export.test_gguf import SHAPES
from tests.support import tiny_runs
from tests.support.tiny import make_tiny
from tests.support.tiny_experts import MIXTURES

FAMILIES = ("mistral", "qwen2", "qwen3", "gemma2", "phi3")


@pytest.mark.parametrize("is_double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_rows_at_a_time_are_what_bitsandbytes_makes_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant_type: str, is_double_quant: bool
) -> None:
    """Bit for bit, for weights whose rows are no whole blocks too."""
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 2000)
    torch.manual_seed(3)
    tensors = {"a": torch.randn(300, 64), "b": torch.randn(130, 96) ** 3, "c": torch.randn(70, 10)}
    save_file({n: t.to(torch.bfloat16) for n, t in tensors.items()}, tmp_path / "model.safetensors")
    base, quantizer = Weights.of(tmp_path), Quantizer(quant_type, is_double_quant, torch.float32)
    for name in tensors:
        stored = base.rows(name, 0, base.shape(name)[0])
        wanted, state = functional.quantize_4bit(
            stored.float(), blocksize=64, compress_statistics=is_double_quant, quant_type=quant_type
        )
        found = quantizer.pack(base.shape(name), lambda a, b, n=name: base.rows(n, a, b).float())  # type: ignore[misc]
        assert torch.equal(found.data, wanted)
        assert torch.equal(found.state.absmax, state.absmax)
        trip = RoundTrip(base, name, quantizer)
        rows = torch.cat([trip.rows(*span) for span in pieces.row_spans(base.shape(name), 32)])
        assert torch.equal(rows, quantizer.round_trip(stored))
        blocks = stored.float().reshape(-1)[: stored.numel() // 64 * 64].reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        error = (rows.reshape(-1)[: blocks.numel()].reshape(-1, 64) - blocks).abs() / largest
        assert float(error.max()) < 0.25  # half the widest gap of the code, and the constants' own rounding


def layers_of(model: Any) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}


def test_it_is_bitsandbytes_own_of_the_merged_weights_and_loads_plainly(
    run_of: RunOf, model_dir: Path, export: Export
) -> None:
    run = run_of("lora")
    out = export(run, "bnb4")
    model = AutoModelForCausalLM.from_pretrained(out)
    layers = layers_of(model)
    assert len(layers) == 14
    merged = merged_by_peft(model_dir, run / "adapter")
    for name, layer in layers.items():
        packed, state = functional.quantize_4bit(
            merged[f"{name}.weight"], blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        found = layer.weight.quant_state
        assert (found.quant_type, found.blocksize, found.nested) == ("nf4", 64, True)
        assert float((layer.weight.data == packed).float().mean()) > 0.999
        difference = functional.dequantize_4bit(layer.weight.data, found).float() - (
            functional.dequantize_4bit(packed, state)
        )
        assert float(difference.abs().mean()) < 1e-4
        assert layer.compute_dtype == torch.bfloat16
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4"
    assert config["bnb_4bit_use_double_quant"] is True
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    sizes = [
        sum(p.stat().st_size for p in f.glob("*.safetensors")) for f in (out, export(run, "merged", "16"))
    ]
    assert sizes[0] < 0.75 * sizes[1]  # of so small a model the embeddings are half


@pytest.mark.parametrize("variant", ["lora", "dora", "loftq"])
def test_every_check_passes_and_the_cost_is_told(run_of: RunOf, export: Export, variant: str) -> None:
    run = run_of(variant, **{"dora": {"lora__dora": True}, "loftq": {"lora__init": "loftq"}}.get(variant, {}))
    checks = proven(run, export(run, "bnb4"), "bnb4")
    assert failed(checks) == [], checks
    assert len(checks) == 12
    _, cost = checks["storing in NF4, the rest bf16 costs little"]
    assert 0 < cost["kl_divergence"] < 1
    assert 0.3 < cost["agreement"] <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_is_proven(
    run_of: RunOf, export: Export, tmp_path_factory: pytest.TempPathFactory, family: str
) -> None:
    run = run_of(
        f"bnb4-{family}", make_tiny(family, tmp_path_factory.mktemp(family) / "base", **SHAPES[family])
    )
    assert failed(proven(run, export(run, "bnb4"), "bnb4")) == []


def test_it_is_never_silent(run_of: RunOf, tmp_path: Path) -> None:
    events = export_events(run_of("lora"), "bnb4", tmp_path / "out", verify=False)
    assert isinstance(events[-1], RunFinished)
    notices = [n for n in tiny_runs.of(events, Noticed) if n.code == "export.rounding"]
    assert len(notices) == 1
    assert "rounds what was trained" in notices[0].message
    card = (tmp_path / "out" / "README.md").read_text()
    assert "quantized again" in card
    assert "NF4 with double quantization" in card


def test_rows_that_are_no_whole_blocks_are_refused(run_of: RunOf, tmp_path: Path) -> None:
    """bitsandbytes computes with them wrongly on the CPU, so the export could not be proven."""
    run = run_of("bnb4-rows", make_tiny("llama", tmp_path / "base", intermediate_size=96))
    end = export_events(run, "bnb4", tmp_path / "out")[-1]
    assert isinstance(end, RunFailed)
    assert "down_proj have 96 weights" in end.message


def test_a_spoiled_constant_fails_a_check(run_of: RunOf, export: Export) -> None:
    run = run_of("lora")
    out = export(run, "bnb4")
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if name.endswith("mlp.up_proj.weight.nested_absmax"):
                tensors[name] = tensors[name] * 3
        save_file(tensors, file, metadata={"format": "pt"})
    assert "logits equal base + adapter" in failed(proven(run, out, "bnb4"))


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_mixtures_keep_their_experts_in_16_bits_and_are_proven(
    kind: str, run_of: RunOf, export: Export, tmp_path: Path
) -> None:
    """As GGUF they are refused by name, before any work."""
    base = make_tiny(kind, tmp_path / kind, **MIXTURES[kind])
    run = run_of(f"bnb4-{kind}", base, training__max_steps=4, training__eval_every_steps=4)
    out = export(run, "bnb4")
    assert "in bf16: bitsandbytes' checkpoints hold no stacked experts" in (out / "README.md").read_text()
    assert failed(proven(run, out, "bnb4")) == []
    for format_ in ("gguf", "ollama"):
        end = export_events(run, format_, tmp_path / format_)[-1]
        assert isinstance(end, RunFailed)
        assert f"a model of the type {kind!r} is not written as GGUF here" in end.message
        assert "export it as a merged model" in end.hint
