"""Bases that come quantized: read tensor by tensor, used as they are, brought into 4 bits, or refused with what to fetch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from qlora_engine.config import QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.models import loading, packed_loading, packing, spec, weight_reader
from qlora_engine.models.experts.stack import stacks_of
from qlora_engine.models.four_bit import dequantized
from tests.support.tiny import make_tiny, make_tiny_seeing, tiny_config
from tests.support.tiny_experts import MIXTURES
from tests.support.tiny_packed import to_bitsandbytes, to_fp8, to_mxfp4

NF4 = QuantizationSettings()
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 inputs, so that rows are whole blocks of every format."""
    return make_tiny(
        "llama", tmp_path_factory.mktemp("plain") / "llama", hidden_size=128, intermediate_size=192
    )


@pytest.fixture(scope="module")
def oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("gpt_oss", tmp_path_factory.mktemp("oss") / "oss", **MIXTURES["gpt_oss"])


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS, use_cache=False).logits
        return found


def in_16_bits(folder: Path, meant: dict[str, torch.Tensor], into: Path) -> Path:
    """The same model as an ordinary 16-bit folder."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    (into / "config.json").write_text(json.dumps(config))
    headers = spec.headers_of_folder(folder)
    tensors = {name: meant.get(name, weight_reader.read(folder, one)) for name, one in headers.items()}
    from safetensors.torch import save_file

    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, into / "model.safetensors", metadata={"format": "pt"}
    )
    return into


def test_fp8_becomes_the_4_bits_of_what_it_stands_for(
    plain: Path, copy: Any, home: Path, cpu: DevicePlan, tmp_path: Path
) -> None:
    folder = copy(plain)
    meant = to_fp8(folder)
    assert len(meant) == 14
    for name, header in spec.headers_of_folder(folder).items():
        if name in meant:
            torch.testing.assert_close(weight_reader.read(folder, header), meant[name], rtol=0, atol=0)
            part = weight_reader.read_rows(folder, header, 7, header.shape[0] - 3)
            torch.testing.assert_close(part, meant[name][7:-3], rtol=0, atol=0)
    loaded = loading.load_quantized(folder, NF4, cpu)
    assert "FP8, brought into NF4 tensor by tensor" in loaded.report.converted
    wanted = loading.load_quantized(in_16_bits(folder, meant, tmp_path / "plain"), NF4, cpu)
    assert wanted.report.converted == ""
    torch.testing.assert_close(logits(loaded.model), logits(wanted.model), rtol=0, atol=0)
    facts = spec.facts_of_folder(folder)
    assert (facts.packing, facts.stored_dtype) == ("FP8", "F8_E4M3")


@pytest.mark.parametrize("kind", ["deepseek_v3"])
def test_fp8_experts_are_read_one_at_a_time(
    kind: str, home: Path, cpu: DevicePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny(kind, tmp_path / kind, **MIXTURES[kind])
    meant = to_fp8(folder)
    alive: list[int] = []
    read = weight_reader.read

    def noted(where: Path, tensor: Any) -> torch.Tensor:
        if tensor.packed is not None:
            alive.append(tensor.nbytes)
        return read(where, tensor)

    monkeypatch.setattr(weight_reader, "read", noted)
    loaded = loading.load_quantized(folder, NF4, cpu)
    assert len(alive) == len(meant), "each once"
    monkeypatch.undo()
    wanted = loading.load_quantized(in_16_bits(folder, meant, tmp_path / "plain"), NF4, cpu)
    torch.testing.assert_close(logits(loaded.model), logits(wanted.model), rtol=0, atol=0)


def test_mxfp4_experts_become_nf4_one_after_the_other(
    oss: Path, copy: Any, home: Path, cpu: DevicePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(oss)
    meant = to_mxfp4(folder)
    assert len(meant) == 4
    for name, header in spec.headers_of_folder(folder).items():
        if name in meant:
            torch.testing.assert_close(
                weight_reader.read(folder, header).float(), meant[name], rtol=0, atol=0
            )
    whole = weight_reader._mxfp4
    monkeypatch.setattr(weight_reader, "_mxfp4", lambda *_: pytest.fail("a whole stack was read at once"))
    loaded = loading.load_quantized(folder, NF4, cpu)
    monkeypatch.setattr(weight_reader, "_mxfp4", whole)
    assert "MXFP4, brought into NF4" in loaded.report.converted
    for name, stack in stacks_of(loaded.model).items():
        assert float((stack.dequantized() - meant[name]).abs().max() / meant[name].abs().max()) < 0.2
    sixteen = loading.load_quantized(folder, QuantizationSettings(experts="16bit"), cpu).model
    name = "model.layers.0.mlp.experts.down_proj"
    torch.testing.assert_close(sixteen.get_parameter(name), meant[name], rtol=0, atol=0)


@pytest.mark.parametrize("double_quant", [True, False])
def test_bitsandbytes_weights_are_used_as_they_are(
    double_quant: bool, plain: Path, copy: Any, home: Path, cpu: DevicePlan
) -> None:
    folder = copy(plain)
    packed = to_bitsandbytes(folder, double_quant=double_quant, keep="o_proj")
    loaded = loading.load_quantized(folder, NF4, cpu)
    report = loaded.report
    assert report.is_double_quant == double_quant
    assert "used as they are" in report.converted
    linears = {f"{n}.weight": m for n, m in loaded.model.named_modules() if isinstance(m, Linear4bit)}
    assert linears.keys() == packed.keys()
    for name, module in linears.items():
        assert torch.equal(module.weight.data, packed[name])
    assert type(loaded.model.model.layers[0].self_attn.o_proj) is torch.nn.Linear
    facts = spec.facts_of_folder(folder)
    assert facts.parameters == spec.facts_of_folder(plain).parameters
    assert report.quantized_parameters == facts.quantized_parameters
    assert {t.name for t in facts.unquantized if t.why} == {"model.layers.*.self_attn.o_proj.weight"}


def test_what_bitsandbytes_weights_stand_for_is_read_by_rows(plain: Path, copy: Any, cpu: DevicePlan) -> None:
    folder = copy(plain)
    to_bitsandbytes(folder)
    native = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    for name, header in spec.headers_of_folder(folder).items():
        if header.packed is None:
            continue
        weight = native.get_submodule(name.removesuffix(".weight")).weight
        weight.quant_state.dtype = torch.float32
        wanted = dequantized(weight.data, weight.quant_state)
        torch.testing.assert_close(weight_reader.read(folder, header), wanted, rtol=0, atol=0)
        torch.testing.assert_close(weight_reader.read_rows(folder, header, 3, 9), wanted[3:9], rtol=0, atol=0)
    model = packed_loading.plain_model(folder)
    assert not any(isinstance(m, Linear4bit) for m in model.modules())


def test_the_language_model_of_one_that_sees_may_come_quantized(
    home: Path, cpu: DevicePlan, tmp_path: Path
) -> None:
    folder = make_tiny_seeing("gemma3", tmp_path / "gemma3")
    plain = loading.load_quantized(folder, NF4, cpu)
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    state = load_file(file)
    renamed = {
        n.replace("language_model.model.", "model.") if n.startswith("language") else n: t
        for n, t in state.items()
    }
    save_file(renamed, file, metadata={"format": "pt"})
    to_fp8(folder)
    again = {
        n.replace("model.layers", "language_model.model.layers") if n.startswith("model.layers") else n: t
        for n, t in load_file(file).items()
    }
    back = {o: n for n, o in ((n, n.replace("language_model.model.", "model.")) for n in state)}
    save_file({back.get(n, n): t for n, t in again.items()}, file, metadata={"format": "pt"})
    found = loading.load_quantized(folder, NF4, cpu)
    assert found.report.quantized_modules == plain.report.quantized_modules
    assert float((logits(found.model) - logits(plain.model)).abs().max()) < 0.5


@pytest.mark.parametrize(
    ("settings", "name", "words", "fetch"),
    [
        ({"quant_method": "gptq", "bits": 4}, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "GPTQ", "fetch Qwen2.5-7B-Instruct in 16 bits"),
        ({"quant_method": "awq"}, "Qwen/Qwen2.5-7B-Instruct-AWQ", "AWQ", "fetch Qwen2.5-7B-Instruct in 16 bits"),
        ({"quant_method": "hqq"}, "mine", "HQQ", "the 16-bit model that it was made from"),
        ({"quant_method": "compressed-tensors"}, "neo/Llama-3-8B-quantized.w8a8", "compressed-tensors", "fetch Llama-3-8B in 16"),
        ({"load_in_8bit": True}, "mine", "bitsandbytes in 8 bits", "base_model"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "mine", "experts in FP4", "base_model"),
        ({"quant_method": "brand-new"}, "mine", "brand-new", "base_model"),
    ],
)  # fmt: skip
def test_others_are_told_with_what_to_fetch(
    settings: dict[str, Any], name: str, words: str, fetch: str
) -> None:
    config = {**tiny_config("llama").to_dict(), "quantization_config": settings}
    with pytest.raises(EngineError, match="already quantized") as caught:
        spec.facts_from_config(config, name)
    assert words in caught.value.message
    assert fetch in caught.value.hint
    nested = {
        "model_type": "gemma3",
        "text_config": {**tiny_config("gemma3_text").to_dict(), "quantization_config": settings},
    }
    with pytest.raises(EngineError, match="already quantized"):
        packing.packing_of(nested)


def test_an_fp8_weight_without_its_scale_is_named(plain: Path, copy: Any) -> None:
    folder = copy(plain)
    to_fp8(folder)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    del tensors[f"{lost}_scale_inv"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=lost):
        spec.facts_of_folder(folder)
