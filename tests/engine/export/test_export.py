"""Exports are the trained model: equal to PEFT's own merge, loadable by the plain libraries, whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine.client import InlineEngine
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    CheckFinished,
    Event,
    PhaseChanged,
    Progressed,
    RunFailed,
    RunFinished,
    RunStopped,
)
from qlora_engine.export import merge, source, verify, verify_child
from qlora_engine.jobs import ExportJob
from qlora_engine.runs.record import RunFolder
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.support import tiny_runs
from tests.support.run_folders import seal_adapter
from tests.support.tiny import make_tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"lora__rslora": True},
    "dora": {"lora__dora": True},
    "bf16": {"lora__dtype": "bf16"},
    "attention": {"lora__targets": "attention"},
}
MESSAGES = [{"role": "user", "content": "Say water 3"}]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def merged_by_peft(
    base: Path, adapter: Path, change: Callable[[Any], None] | None = None
) -> dict[str, torch.Tensor]:
    """The weights PEFT itself makes of base and adapter, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if change is not None:
        change(model)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


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


# ---- proof


def checks_of(events: list[Event]) -> dict[str, bool | None]:
    return {e.name: e.passed for e in tiny_runs.of(events, CheckFinished)}


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["merged", "adapter"])
def test_a_right_export_is_proven_in_a_process_of_its_own(
    run_of: RunOf, tmp_path: Path, format_: str
) -> None:
    events = export_events(run_of("lora"), format_, tmp_path / "out")
    end = events[-1]
    assert isinstance(end, RunFinished)
    checks = checks_of(events)
    assert end.result["is_proven"], checks
    assert all(checks.values())
    assert len(checks) == (11 if format_ == "merged" else 6)
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["is_proven"] is True
    assert set(proof["sha256"]) == {p.name for p in (tmp_path / "out").iterdir()} - {"proof.json"}


@pytest.mark.parametrize(
    ("format_", "variant", "options"),
    [
        ("merged", "lora", {"dtype": "fp16"}), ("merged", "rslora", {"into": "dequantized"}), ("merged", "dora", {}),
        ("adapter", "dora", {}), ("merged", "loftq", {"dtype": "fp32"}),
    ],
)  # fmt: skip
def test_right_exports_of_every_kind_pass_every_check(
    run_of: RunOf, export: Export, format_: str, variant: str, options: dict[str, Any]
) -> None:
    run = run_of(variant, **{"loftq": {"lora__init": "loftq"}, **VARIANTS}[variant])
    checks = proven(run, export(run, format_, **options), format_)
    assert failed(checks) == [], checks
    assert len(checks) == (10 if format_ == "merged" else 5)


def flip_a_weight(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "lora_B" in n or "mlp" in n)
    changed = tensors[name].float()
    changed[0, 0] += 5.0
    tensors[name] = changed.to(tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})


def forget_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def forget_the_ends(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 2}))


def cut(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 10)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor], str], None]) -> None:
    """Rewrite an adapter's file; `change` gets all tensors and the name of one B matrix."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors, max(n for n in tensors if "lora_B" in n))
    save_file(tensors, file, metadata={"format": "pt"})


def lose_a_key(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def silence_a_key(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].zero_()


def rename_a_key(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("model.layers", "model.language_model.layers")] = tensors.pop(name)


ACCIDENTS: dict[str, tuple[Callable[[dict[str, torch.Tensor], str], None], str]] = {
    "missing": (lose_a_key, "is not in the adapter file"),
    "renamed": (rename_a_key, "belongs to no module of the base"),
    "all zero": (silence_a_key, "is all zero"),
}


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize(("change", "words"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_an_adapter_that_does_not_fit_fails_the_proof_by_name(
    run_of: RunOf,
    export: Export,
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, torch.Tensor], str], None],
    words: str,
) -> None:
    """The run's own adapter is changed before anything is exported: export and reference agree, and nothing but the names
    could tell."""
    run = Path(shutil.copytree(run_of("lora"), tmp_path / "run"))
    out = export(run_of("lora"), kind)
    told: dict[str, str] = {}

    def tell(name: str, passed: bool | None, detail: str, **numbers: Any) -> None:
        if passed is False:
            told[name] = detail

    for folder in (run / "adapter", *([out] if kind == "adapter" else [])):
        change_tensors(folder, change)
    seal_adapter(run)
    details = json.loads((out / "proof.json").read_text())["details"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of missing keys
        verify_child.check(verify.request_of(source.open_source(str(run)), out, kind, details), tell)
    detail = told["every tensor of the adapter has its module"]
    assert "layers.1" in detail
    assert words in detail


def test_an_adapter_that_does_nothing_proves_nothing(run_of: RunOf, export: Export, tmp_path: Path) -> None:
    """All of it zero: base, trained and exported model agree in everything."""
    run = Path(shutil.copytree(run_of("lora"), tmp_path / "run"))

    def silence(tensors: dict[str, torch.Tensor], name: str) -> None:
        for other in tensors:
            if "lora_B" in other:
                tensors[other].zero_()

    change_tensors(run / "adapter", silence)
    seal_adapter(run)
    for kind in ("adapter", "merged"):
        checks = proven(run, export(run, kind, kind), kind)
        assert {"the adapter acts", "every tensor of the adapter has its module"} <= set(failed(checks))
        assert checks["logits equal base + adapter"][0] is True, "this is what once called it proven"


SPOILED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a weight of a merge": ("merged", flip_a_weight, "logits equal base + adapter"),
    "a weight of an adapter": ("adapter", flip_a_weight, "logits equal base + adapter"),
    "the template": ("merged", forget_the_template, "chat template renders the same"),
    "an end token": ("merged", forget_the_ends, "stops on its end tokens"),
}


@pytest.mark.parametrize(("format_", "spoil", "check"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_export_fails_a_check(
    run_of: RunOf, export: Export, format_: str, spoil: Callable[[Path], None], check: str
) -> None:
    run = run_of("lora")
    out = export(run, format_)
    spoil(out)
    assert check in failed(proven(run, out, format_))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "check"), [(flip_a_weight, "logits equal base + adapter"), (cut, "the proof ran to its end")]
)
def test_what_is_spoiled_between_writing_and_proving_is_not_called_proven(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], check: str
) -> None:
    original = verify.prove

    def spoiled(found: Any, folder: Path, *rest: Any) -> Iterator[Any]:
        spoil(folder)
        return original(found, folder, *rest)

    monkeypatch.setattr(verify, "prove", spoiled)
    events = export_events(run_of("lora"), "merged", tmp_path / "out")
    end = events[-1]
    assert isinstance(end, RunFinished)
    assert checks_of(events)[check] is False
    assert end.result["is_proven"] is False


# ---- refusals, and nothing left behind


def refused(run: Path, out: Path, format_: str = "merged", **options: Any) -> RunFailed:
    before = sorted(p.name for p in out.parent.iterdir()) if out.parent.is_dir() else []
    events = export_events(run, format_, out, **{"verify": False, **options})
    end = events[-1]
    assert isinstance(end, RunFailed), end
    assert not end.log_tail, end.log_tail
    if out.parent.is_dir():
        assert sorted(p.name for p in out.parent.iterdir()) == before
    return end


def test_another_base_is_refused_with_both_hashes(run_of: RunOf, model_dir: Path, tmp_path: Path) -> None:
    other = make_tiny(
        "llama",
        tmp_path / "models" / "tiny",
        seed=1,
        tie_word_embeddings=True,
        intermediate_size=128,
        max_shard_size="100KB",
    )
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run)
    record = RunFolder(run).record()
    trained_on = record["model"]["fingerprint"]
    record["model"]["path"] = str(other)
    RunFolder(run).write_record(record)
    for format_ in ("adapter", "merged"):
        end = refused(run, tmp_path / "out", format_)
        assert end.code == "export.wrong_base"
        name = next(n for n in trained_on if n in end.message)
        assert trained_on[name][:16] in end.message
        from qlora_engine.models.fingerprint import fingerprint

        assert fingerprint(other)[name][:16] in end.message


def test_a_base_that_is_gone_is_said(run_of: RunOf, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run)
    record = RunFolder(run).record()
    record["model"] |= {"path": str(tmp_path / "gone"), "name": "nobody/nothing"}
    RunFolder(run).write_record(record)
    end = refused(run, tmp_path / "out")
    assert "nobody/nothing" in end.message
    assert "not on this disk" in end.message


def test_a_folder_that_holds_something_is_refused_and_left_alone(run_of: RunOf, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    end = refused(run_of("lora"), out)
    assert end.code == "export.exists"
    assert end.is_input_error
    assert (out / "precious.txt").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("mine")
    assert refused(run_of("lora"), file).code == "export.exists"


def test_an_empty_folder_is_used(run_of: RunOf, export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (export(run_of("lora"), "adapter") / "adapter_model.safetensors").is_file()


def test_a_place_that_cannot_be_written_is_said(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    end = refused(run_of("lora"), in_the_way / "out")
    assert end.code == "output.not_writable"

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", denied)
    end = refused(run_of("lora"), tmp_path / "out")
    assert end.code == "output.not_writable"
    assert "Permission denied" in end.message


@pytest.mark.parametrize("format_", ["merged", "adapter"])
def test_too_small_a_disk_is_refused_before_writing(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    monkeypatch.setattr(source.shutil, "disk_usage", lambda _: SimpleNamespace(total=9, used=8, free=1000))
    end = refused(run_of("lora"), tmp_path / "out", format_)
    assert end.code == "disk.full"
    assert "GiB left" in end.message


def test_a_disk_that_fills_up_leaves_nothing_behind(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = merge.write_pieces, iter(range(100))

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    monkeypatch.setattr(merge, "write_pieces", second_fails)
    end = refused(run_of("lora"), tmp_path / "out")
    assert end.code == "disk.write"
    assert "No space left on device" in end.message
    assert next(calls) == 2  # one shard was written, and is gone: it is too small to be kept


@pytest.mark.parametrize("moment", ["exporting", "verifying"])
def test_a_stop_half_way_leaves_nothing_behind(run_of: RunOf, tmp_path: Path, moment: str) -> None:
    engine, seen = InlineEngine(), []
    out = tmp_path / "place" / "out"
    for event in engine.run(ExportJob(str(run_of("lora")), "merged", str(out), {})):
        seen.append(event)
        is_half_way = isinstance(event, Progressed) and event.phase == "exporting" and event.done == 5
        if (moment == "exporting" and is_half_way) or (
            isinstance(event, PhaseChanged) and event.phase == moment == "verifying"
        ):
            engine.request_stop()
    assert isinstance(seen[-1], RunStopped)
    assert not seen[-1].is_resumable
    assert list(out.parent.iterdir()) == []


def test_an_unknown_format_or_option_is_an_input_error(run_of: RunOf, tmp_path: Path) -> None:
    end = refused(run_of("lora"), tmp_path / "out", "mergd")
    assert end.code == "export.format"
    assert "merged" in end.hint
    end = refused(run_of("lora"), tmp_path / "out", dtype="int3")
    assert end.code == "export.option"
    assert end.is_input_error


def test_a_run_without_an_adapter_is_refused_with_the_next_step(run_of: RunOf, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run, ignore=shutil.ignore_patterns("adapter"))
    end = refused(run, tmp_path / "out")
    assert end.code == "export.no_adapter"
    assert "qlora resume" in end.hint


def test_an_adapter_of_another_kind_is_not_merged_wrongly(tmp_path: Path) -> None:
    for config in ({"peft_type": "IA3"}, {"peft_type": "LORA", "bias": "all"}):
        with pytest.raises(EngineError, match="not merged here"):
            merge.read_deltas(tmp_path, config)
