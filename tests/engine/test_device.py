"""Which device and type a run computes with, and that nothing is put on another one. Imports the ML stack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from qlora_engine.config import ModelSettings, QuantizationSettings
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.errors import EngineError
from qlora_engine.models import built, loading, spec
from tests.support.tiny import make_tiny

CPU = plan_device(ModelSettings(device="cpu"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A GPU as torch tells of it; `is_emulated`: it computes bf16 by way of fp32."""
    told = {"has_bf16": True, "is_emulated": False}

    def supported(including_emulation: bool = True) -> bool:
        return told["has_bf16"] or (including_emulation and told["is_emulated"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    return told


def test_a_gpu_computes_in_bf16_where_it_has_it_and_else_in_fp16(card: dict[str, bool]) -> None:
    assert plan_device(ModelSettings()).torch_dtype is torch.bfloat16
    card.update(has_bf16=False, is_emulated=True)
    found = plan_device(ModelSettings())
    assert (found.name, found.torch_dtype) == ("cuda:0", torch.float16)
    with pytest.raises(EngineError, match="no bfloat16"):
        plan_device(ModelSettings(), "bf16")
    assert plan_device(ModelSettings(), "fp32").torch_dtype is torch.float32


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_cpu_computes_in_fp32_and_in_bf16_only_with_instructions_for_it(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them a backward pass is hundreds of times slower, and looks like a hang."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    settings = ModelSettings(device="cpu")
    assert plan_device(settings).torch_dtype is torch.float32
    if has_bf16:
        assert plan_device(settings, "bf16").torch_dtype is torch.bfloat16
    else:
        with pytest.raises(EngineError, match="hundreds of times slower"):
            plan_device(settings, "bf16")
    with pytest.raises(EngineError, match="float16 cannot be trained on the CPU"):
        plan_device(settings, "fp16")


def test_a_gpu_that_is_asked_for_and_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan_device(ModelSettings()).name == "cpu"
    with pytest.raises(EngineError, match="torch sees none"):
        plan_device(ModelSettings(device="cuda"))


def test_what_is_loaded_is_on_the_one_device_and_in_the_one_type(tmp_path: Path) -> None:
    """Asked of the tensors: a loader that spills says nothing."""
    folder = make_tiny("llama", tmp_path / "model")
    facts, wanted = spec.facts_of_folder(folder), QuantizationSettings()
    model = loading.load_quantized(folder, wanted, CPU).model
    built._refuse_leftovers(model, facts, wanted, CPU)
    with pytest.raises(EngineError, match=r"weight is not on cuda:0"):
        built._refuse_leftovers(model, facts, wanted, DevicePlan("cuda", 0, "float32", "a test"))
    with pytest.raises(EngineError, match="is not in bfloat16"):
        built._refuse_leftovers(model, facts, wanted, replace(CPU, torch_dtype_name="bfloat16"))
    last = model.model.layers[-1].input_layernorm
    last.weight = torch.nn.Parameter(last.weight.to("meta"), requires_grad=False)
    with pytest.raises(EngineError, match=r"input_layernorm\.weight is not on cpu \(1 such\)"):
        built._refuse_leftovers(model, facts, wanted, CPU)


def test_a_model_is_loaded_onto_one_device_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` would put what does not fit on the CPU."""
    asked: list[Any] = []
    load = loading._from_pretrained

    def spied(*arguments: Any, **more: Any) -> Any:
        asked.append(more["device_map"])
        return load(*arguments, **more)

    monkeypatch.setattr(loading, "_from_pretrained", spied)
    loading.load_quantized(make_tiny("llama", tmp_path / "model"), QuantizationSettings(), CPU)
    assert asked == [{"": "cpu"}]


@pytest.mark.parametrize(("kind", "where"), [("cpu", "this computer"), ("cuda", "the GPU")])
def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny("llama", tmp_path / "model")
    facts, plan = spec.facts_of_folder(folder), DevicePlan(kind, 0, "float32", "a test")
    free = {"bytes": 2**40}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free["bytes"]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free["bytes"], 2**40))
    loading.require_memory(facts, plan)
    free["bytes"] = 1000
    with pytest.raises(EngineError, match=rf"and {where} has 0\.00 GiB free") as caught:
        loading.require_memory(facts, plan)
    assert caught.value.code == "memory.too_small"
