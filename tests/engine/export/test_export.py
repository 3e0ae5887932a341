"""Exports are the trained model: equal to PEFT's own merge, loadable by the plain libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine.runs.record import RunFolder
from tests.engine.export.conftest import Export, RunOf
from tests.engine.export.merged import VARIANTS, merged_by_peft
from tests.support.run_folders import seal_adapter
from tests.support.tiny import make_tiny

MESSAGES = [{"role": "user", "content": "Say water 3"}]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def largest_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Over all tensors: the largest difference relative to the tensor's largest value."""
    return max(
        float((found[name].float() - wanted[name]).abs().max() / wanted[name].abs().max()) for name in found
    )


def move_magnitudes(run: Path) -> Path:
    """A copy of a DoRA run whose magnitudes are far from the weights' own norms, so that leaving them out would show."""
    other = run.with_name(f"{run.name}-moved")
    if not other.exists():
        shutil.copytree(run, other)
        file = other / "adapter" / "adapter_model.safetensors"
        tensors = load_file(file)
        for name in tensors:
            if "magnitude" in name:
                tensors[name] = tensors[name] * 1.5
        save_file(tensors, file, metadata={"format": "pt"})
        seal_adapter(other)
    return other


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_merge_is_that_of_peft(run_of: RunOf, model_dir: Path, export: Export, variant: str) -> None:
    run = run_of(variant, **VARIANTS[variant])
    if variant == "dora":
        run = move_magnitudes(run)
    out = export(run, "merged", dtype="fp32")
    wanted = merged_by_peft(model_dir, run / "adapter")
    found = weights_of(out)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).state_dict()
    assert largest_difference(found, wanted) < 1e-5
    assert largest_difference(found, base) > 1e-2  # the adapter is in it


def test_the_default_of_loftq_is_merged_into_dequantized_weights(
    run_of: RunOf, model_dir: Path, export: Export
) -> None:
    run = run_of("loftq", lora__init="loftq")

    def dequantized(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "proj" in name:
                packed, state = functional.quantize_4bit(
                    parameter.data, blocksize=64, compress_statistics=True, quant_type="nf4"
                )
                parameter.data = functional.dequantize_4bit(packed, state)

    found = weights_of(export(run, "merged", dtype="fp32"))
    assert largest_difference(found, merged_by_peft(model_dir, run / "adapter", dequantized)) < 1e-5
    assert largest_difference(found, merged_by_peft(model_dir, run / "adapter")) > 1e-3
    into_original = weights_of(export(run, "merged", "original", dtype="fp32", into="original"))
    assert largest_difference(into_original, merged_by_peft(model_dir, run / "adapter")) < 1e-5
    card = (tmp := export(run, "merged", "card")) / "README.md"
    assert "merged into | the dequantized weights" in card.read_text()
    assert tmp.is_dir()


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_delta_is_added_in_fp32_and_then_stored(
    run_of: RunOf, model_dir: Path, export: Export, dtype: str, stored: torch.dtype
) -> None:
    """Adding in 16 bit instead would round twice (CORRECTNESS 4)."""
    run = run_of("lora")
    found = weights_of(export(run, "merged", dtype=dtype))
    wanted = merged_by_peft(model_dir, run / "adapter")
    assert {tensor.dtype for tensor in found.values()} == {stored}
    same = [float((found[name] == wanted[name].to(stored)).float().mean()) for name in found]
    assert min(same) > 0.999  # sums in another order may differ in the last bit of a weight


def test_the_merged_model_runs_in_plain_transformers(run_of: RunOf, model_dir: Path, export: Export) -> None:
    run = run_of("lora")
    out = export(run, "merged", dtype="fp32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, run / "adapter")
    assert (
        "chat_template"
        in json.dumps([p.name for p in out.iterdir()]) + (out / "tokenizer_config.json").read_text()
    )
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        torch.testing.assert_close(model(prompt).logits, tuned(prompt).logits, rtol=1e-4, atol=1e-4)
    assert model.config.tie_word_embeddings is True
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert model.dtype == torch.float32
    assert set(model.generation_config.eos_token_id) == {2, 4}
    assert not any(p.suffix in (".bin", ".pt", ".pkl") for p in out.rglob("*"))


def test_the_adapter_runs_in_plain_peft(run_of: RunOf, model_dir: Path, export: Export) -> None:
    run = run_of("lora")
    out = export(run, "adapter")
    prompt = torch.tensor([[3, 10, 20, 30]])
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        plain = base(prompt).logits
        exported = PeftModel.from_pretrained(base, out)(prompt).logits
    own = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), run / "adapter"
    )
    with torch.no_grad():
        torch.testing.assert_close(exported, own(prompt).logits)
    assert float((exported - plain).abs().max()) > 0.01
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model_dir.name
    assert AutoTokenizer.from_pretrained(out).chat_template
    card = (out / "README.md").read_text()
    fingerprint = RunFolder(run).record()["model"]["fingerprint"]
    assert str(model_dir.parent) not in card, "a card is read by others"
    for fact in (model_dir.name, "nf4", "with double quantization", *fingerprint.values()):
        assert fact in card


@pytest.mark.parametrize("format_", ["adapter", "merged"])
def test_the_template_the_run_was_trained_with_is_inside(
    run_of: RunOf, export: Export, tmp_path: Path, format_: str
) -> None:
    """A base without one; a template that ends answers with a token the base does not know as its end."""
    bare = make_tiny("llama", tmp_path / "bare", chat_template=None)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(bare)
    run = run_of(f"bare-{format_}", bare, data__chat_template="chatml")
    out = export(run, format_)
    text = AutoTokenizer.from_pretrained(out).apply_chat_template(MESSAGES, tokenize=False)
    assert text.startswith("<|im_start|>user\nSay water 3<|im_end|>")
    if format_ == "merged":
        ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends


def test_the_same_export_twice_is_the_same_bytes(run_of: RunOf, export: Export) -> None:
    for format_ in ("merged", "adapter"):
        one, other = (
            export(run_of("lora"), format_, f"{format_}1"),
            export(run_of("lora"), format_, f"{format_}2"),
        )
        files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
        for name in files:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
