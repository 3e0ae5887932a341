"""Exports of runs whose model is more than a row of linear layers: mixtures of experts, and models that also see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from qlora_engine.models.names import plain_class
from qlora_engine.models.quiet import quiet
from tests.engine.export.conftest import Export, RunOf, failed, proven
from tests.support.tiny import make_tiny, make_tiny_seeing
from tests.support.tiny_experts import MIXTURES
from tests.support.tiny_packed import to_bitsandbytes, to_fp8, to_mxfp4

FEW: dict[str, Any] = {"training__max_steps": 4, "training__eval_every_steps": 4}


def merged_by_peft(base: Path, adapter: Path) -> Any:
    with quiet():
        model = plain_class(base).from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_adapters_on_experts_are_merged_and_proven(
    kind: str, run_of: RunOf, export: Export, tmp_path: Path
) -> None:
    """Files that keep every expert by itself get each the rows that are its own."""
    base = make_tiny(kind, tmp_path / kind, **MIXTURES[kind])
    run = run_of(kind, base, lora__experts=True, **FEW)
    wanted = merged_by_peft(base, run / "adapter").state_dict()
    out = export(run, "merged", dtype="fp32")
    with quiet():
        found = plain_class(out).from_pretrained(out, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    checks = proven(run, out, "merged")
    assert failed(checks) == [], checks
    assert failed(proven(run, export(run, "adapter", "adapter"), "adapter")) == []


def test_experts_are_merged_into_what_the_4_bit_model_computes_with(
    run_of: RunOf, export: Export, tmp_path: Path
) -> None:
    for kind in ("qwen3_moe", "gpt_oss"):
        base = make_tiny(kind, tmp_path / kind, **MIXTURES[kind])
        run = run_of(kind, base, lora__experts=True, **FEW)
        checks = proven(run, export(run, "merged", f"{kind}-out", dtype="fp32", into="dequantized"), "merged")
        assert failed(checks) == [], checks


@pytest.mark.parametrize("kind", ["gemma3"])
def test_a_model_that_also_sees_keeps_its_eyes(
    kind: str, run_of: RunOf, export: Export, tmp_path: Path
) -> None:
    """The adapter fits the model as a user loads it, and the merged one is of the same class with the same tower."""
    base = make_tiny_seeing(kind, tmp_path / kind)
    run = run_of(kind, base, **FEW)
    adapter = export(run, "adapter", "adapter")
    assert failed(proven(run, adapter, "adapter")) == []
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert not any("vision" in name for name in config["target_modules"])
    assert all("language_model" in name for name in load_file(adapter / "adapter_model.safetensors"))
    out = export(run, "merged", "merged", dtype="fp32")
    assert failed(proven(run, out, "merged")) == []
    with quiet():
        found = plain_class(base).from_pretrained(out, dtype=torch.float32)
        before = plain_class(base).from_pretrained(base, dtype=torch.float32).state_dict()
    tower = [name for name in before if "vision" in name or "projector" in name]
    assert tower
    assert all(torch.equal(found.state_dict()[name], before[name]) for name in tower)


@pytest.mark.parametrize(
    ("kind", "pack", "words"),
    [
        ("llama", to_fp8, "FP8, brought into NF4 tensor by tensor while loading"),
        ("llama", to_bitsandbytes, "bitsandbytes NF4 with double quantization, used as they are"),
        ("gpt_oss", to_mxfp4, "MXFP4, brought into NF4 tensor by tensor while loading"),
    ],
)
def test_a_run_on_a_base_that_comes_quantized_is_exported_and_proven(
    kind: str, pack: Any, words: str, run_of: RunOf, export: Export, tmp_path: Path
) -> None:
    """The merged model is an ordinary 16-bit one, under the names that the class has; the card says what was converted."""
    base = make_tiny(kind, tmp_path / kind, **(MIXTURES.get(kind) or {"hidden_size": 128}))
    names = set(load_file(base / "model.safetensors"))
    pack(base)
    run = run_of(f"{kind}-{pack.__name__}", base, **FEW)
    assert json.loads((run / "run.json").read_text())["load_report"]["converted"] == words
    out = export(run, "merged", dtype="fp32", into="dequantized")
    assert set(load_file(out / "model.safetensors")) == names
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert words in (out / "README.md").read_text()
    checks = proven(run, out, "merged")
    assert failed(checks) == [], checks
    assert failed(proven(run, export(run, "adapter", "adapter"), "adapter")) == []
