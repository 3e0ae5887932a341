"""What load_quantized refuses: lost tensors, leftovers, code that was not agreed to; and that it can be stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from qlora_engine.config import QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.models import loading, spec
from qlora_engine.models.four_bit import dequantized
from tests.support.tiny import CHATML, make_tiny, tiny_tokenizer

NF4 = QuantizationSettings()


def change_tensors(folder: Path, **changes: Any) -> None:
    """Set or (None) drop tensors of a folder's one weight file."""
    file = folder / "model.safetensors"
    state = load_file(file)
    for name, tensor in changes.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, file, metadata={"format": "pt"})


def test_a_lost_tensor_is_an_error_not_noise(llama: Path, home: Path, cpu: DevicePlan) -> None:
    lost = "model.layers.1.mlp.up_proj.weight"
    filler = torch.zeros(96, 64, dtype=torch.bfloat16)
    change_tensors(llama, **{lost: None, "something.else": filler})
    with pytest.raises(EngineError, match=lost) as caught:
        loading.load_quantized(llama, NF4, cpu)
    assert caught.value.code == "model.incomplete"


def test_too_few_tensors_are_noticed_without_loading(llama: Path) -> None:
    change_tensors(llama, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(EngineError, match=r"the files hold [\d,]+ parameters"):
        spec.facts_of_folder(llama)


def test_a_tensor_of_another_shape_is_refused(llama: Path, home: Path, cpu: DevicePlan) -> None:
    change_tensors(llama, **{"model.norm.weight": torch.ones(65, dtype=torch.bfloat16)})
    with pytest.raises(EngineError, match="could not be loaded"):
        loading.load_quantized(llama, NF4, cpu)


def test_loading_can_be_stopped(llama: Path, home: Path, cpu: DevicePlan) -> None:
    seen: list[int] = []

    def report(phase: str, done: int, total: int | None, unit: str) -> None:
        seen.append(done)
        if done == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        loading.load_quantized(llama, NF4, cpu, report_progress=report)
    assert seen == [1, 2, 3]
    assert loading.load_quantized(llama, NF4, cpu).report.quantized_modules == 14


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: setattr(m.model.layers[0].mlp, "up_proj", torch.nn.Linear(64, 96)), "was not quantized"),
        (lambda m: m.model.embed_tokens.to(torch.bfloat16), "is not in float32"),
        (lambda m: m.model.norm.to("meta"), "is not on cpu"),
    ],
)
def test_leftovers_are_refused(spoil: Any, words: str, llama: Path, home: Path, cpu: DevicePlan) -> None:
    loaded = loading.load_quantized(llama, NF4, cpu)
    spoil(loaded.model)
    with pytest.raises(EngineError, match=words):
        loading.inspect_loaded(loaded.model, (), llama, spec.facts_of_folder(llama), NF4, cpu)


def test_double_quantization_saves_what_theory_says(tmp_path: Path, home: Path, cpu: DevicePlan) -> None:
    """0.373 bits per parameter (arXiv 2305.14314, section 3), once a layer is large enough."""
    folder = make_tiny("llama", tmp_path / "wide", hidden_size=512, intermediate_size=1024, head_dim=128)
    single = loading.load_quantized(folder, QuantizationSettings(double_quant=False), cpu).report
    double = loading.load_quantized(folder, NF4, cpu).report
    second_tables = (256 * 4 + 4) * single.quantized_modules  # code table and offset, once per layer
    saved = single.constants_bytes - double.constants_bytes + second_tables
    assert saved * 8 / single.quantized_parameters == pytest.approx(0.373, abs=0.001)
    assert single.packed_bytes == double.packed_bytes == single.quantized_parameters // 2


def test_the_memory_needed_depends_on_double_quantization(
    llama: Path, cpu: DevicePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    facts = spec.replace(spec.facts_of_folder(llama), unquantized=())
    free = type("Memory", (), {"available": int(facts.quantized_parameters * 0.54)})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    loading.require_memory(facts, cpu, NF4)
    with pytest.raises(EngineError, match="GiB free"):
        loading.require_memory(facts, cpu, QuantizationSettings(double_quant=False))


MODELING = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama under a name of its own, built by a Python file beside its weights."""
    config = json.loads((llama / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "own_llama"
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    (llama / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (llama / "modeling_own.py").write_text(MODELING, encoding="utf-8")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return llama


def test_code_in_the_model_is_named_not_run(own_code: Path, home: Path, cpu: DevicePlan) -> None:
    with pytest.raises(EngineError, match=r"brings Python code .*modeling_own\.py") as caught:
        loading.load_quantized(own_code, NF4, cpu)
    assert str(own_code) in caught.value.hint


def test_facts_of_a_model_with_code_come_from_its_files(own_code: Path, tmp_path: Path) -> None:
    told = spec.facts_of_folder(own_code)
    plain = spec.facts_of_folder(make_tiny("llama", tmp_path / "plain"))
    assert told.parameters == plain.parameters
    assert told.quantized_parameters == plain.quantized_parameters
    assert {n.path for n in told.linears} == {n.path for n in plain.linears}
    assert sorted(t.role for t in told.unquantized) == sorted(t.role for t in plain.unquantized)


def test_code_that_was_agreed_to_is_run(own_code: Path, home: Path, cpu: DevicePlan) -> None:
    loaded = loading.load_quantized(own_code, NF4, cpu, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert loaded.report.quantized_modules == 14


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", "<end_of_turn>"), "<end_of_turn>"),
        (CHATML.replace("<|im_end|>", "<|eot_id|>"), "<|eot_id|>"),
    ],
)
def test_the_token_that_ends_a_turn_ends_an_answer(
    template: str, token: str, llama: Path, home: Path, cpu: DevicePlan
) -> None:
    tokenizer = tiny_tokenizer(template, eos_token="</s>")
    tokenizer.add_tokens([token], special_tokens=True)
    tokenizer.save_pretrained(llama)
    report = loading.load_quantized(llama, NF4, cpu).report
    assert tokenizer.convert_tokens_to_ids(token) in report.end_token_ids
    assert tokenizer.eos_token_id in report.end_token_ids


def test_a_file_that_changed_gets_a_new_hash(llama: Path, home: Path) -> None:
    before = loading.fingerprint(llama)
    assert set(before) == {"model.safetensors", "config.json", "tokenizer.json"}
    change_tensors(llama, **{"model.norm.weight": torch.zeros(64, dtype=torch.bfloat16)})
    after = loading.fingerprint(llama)
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}


def test_rows_that_are_no_whole_blocks_are_read_right_on_the_cpu(
    llama: Path, home: Path, cpu: DevicePlan
) -> None:
    """96 inputs: bitsandbytes' own product takes the constants of other rows, and passes wrong gradients on."""
    layer = loading.load_quantized(llama, NF4, cpu).model.model.layers[0].mlp.down_proj
    assert layer.in_features % 64
    weight = dequantized(layer.weight.data, layer.weight.quant_state)
    original = load_file(llama / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
    assert float((weight - original).abs().max() / original.abs().max()) < 0.15
    x = torch.randn(3, 96, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(layer(x), x @ weight.T)
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, -1))


READ_RIGHT = {
    "models/four_bit.py",
    "quantization/roundtrip.py",
    "memory/context_probe.py",
    "memory/operations.py",
}
"""The one place, one row at a time, a square of whole blocks, and an operation that only counts."""


def test_four_bit_weights_are_read_in_one_place_only() -> None:
    """On some processors bitsandbytes reads rows that are no whole blocks with other rows' constants: a second reader
    would be right on the machine it was written on and wrong on the next."""
    engine = Path(loading.__file__).parents[1]
    found = {
        str(file.relative_to(engine)) for file in engine.rglob("*.py") if re.search(r"dequantize_4bit\b.*\(", file.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert found == READ_RIGHT
