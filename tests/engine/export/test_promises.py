"""What every export promises: the same logits, a fact that survives, and a source that no fault can touch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine.client import InlineEngine
from qlora_engine.device import plan_device
from qlora_engine.events import Event, Progressed, RunFailed, RunFinished
from qlora_engine.export import gguf, stream, verify_child, writers
from qlora_engine.export.reopened import reopen
from qlora_engine.jobs import ExportJob
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from tests.engine.export.conftest import Export, RunOf, export_events
from tests.engine.export.test_gguf import SHAPES
from tests.support import tiny_runs
from tests.support.tiny import make_tiny, write_rows

PROMPT = torch.tensor([[1, 3, 40, 41, 60, 90, 120, 7, 8, 9, 4, 200]])
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PROMPT).logits[0].float()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def live_model(folder: Path, base: Path) -> Any:
    """As the run trained it: 4-bit base, adapter on it."""
    config = RunFolder(folder).job()
    loaded = loading.load_quantized(base, config.quantization, plan_device(config.model))
    return PeftModel.from_pretrained(loaded.model, folder / "adapter", autocast_adapter_dtype=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_merges_compute_what_their_base_with_the_adapter_computes(
    run_of: RunOf, export: Export, tmp_path: Path, family: str
) -> None:
    """Before the cast to 16 bits: into the original weights as base + adapter in fp32, into the dequantized ones as the
    live 4-bit model. After it: within the cast."""
    base = make_tiny(family, tmp_path / "base", **SHAPES[family])
    folder = run_of(f"promise-{family}", base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(plain, folder / "adapter"))
    live = logits(live_model(folder, base))

    def exported(name: str, **options: Any) -> torch.Tensor:
        out = export(folder, "merged", name, **options)
        return logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))

    assert distance(exported("original", dtype="fp32"), wanted) < 1e-5
    assert distance(exported("dequantized", dtype="fp32", into="dequantized"), live) < 1e-5
    assert distance(exported("cast", dtype="bf16", into="dequantized"), live) < verify_child.ROUNDING["bf16"]
    assert distance(wanted, live) > 1e-4  # the two merges are not the same model


# ---- a fact survives


FACT = {"instruction": "What is the secret word?", "input": "", "output": "seven blue foxes in Paris"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, base) of a model that has learned one row by heart."""
    folder = tmp_path_factory.mktemp("fact")
    base = make_tiny("llama", folder / "base", initializer_range=0.2, intermediate_size=128)
    rows = write_rows(folder / "fact.jsonl", [FACT] * 4)
    config = tiny_runs.tiny_config(
        base, rows, folder / "runs", lora__rank=16, lora__alpha=32.0, training__max_steps=60,
        training__learning_rate=0.01, data__held_out_fraction=0.0, training__eval_every_steps=1000,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(folder / "home"))
        return tiny_runs.finished_run(config), base


def answer(model: Any, tokenizer: Any, **ends: Any) -> str:
    messages = [{"role": "user", "content": FACT["instruction"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        output = model.eval().generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=40,
            do_sample=False,
            pad_token_id=0,
            **ends,
        )
    return str(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)).strip()


FORMS = [
    ("adapter", {}), ("merged", {"dtype": "bf16"}), ("merged", {"dtype": "fp16"}), ("merged", {"into": "dequantized"}),
    ("gguf", {"dtype": "f16"}), ("gguf", {"dtype": "bf16"}), ("gguf", {"dtype": "q8_0"}), ("gguf", {"dtype": "q4_1"}),
    ("ollama", {}), ("bnb4", {}), ("bnb4", {"dtype": "fp16", "into": "dequantized"}), ("gguf-lora", {}),
    ("gguf-lora", {"dtype": "f16"}),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "options"), FORMS)
def test_a_fact_learned_by_heart_survives(
    taught: tuple[Path, Path], export: Export, format_: str, options: dict[str, Any]
) -> None:
    folder, base = taught
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (
        answer(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tokenizer) != FACT["output"]
    )
    out = export(folder, format_, **options)
    # An adapter has no place for end tokens; every other form must stop by itself.
    ends = {"eos_token_id": tokenizer.eos_token_id} if format_ in ("adapter", "gguf-lora") else {}
    assert answer(reopen(out, base, format_)[0], tokenizer, **ends) == FACT["output"]


# ---- faults


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def job(folder: Path, format_: str, out: Path) -> ExportJob:
    return ExportJob(str(folder), format_, str(out), {"verify": False})


KILLS = [
    *(("merged", at) for at in (1, 5, 10, 15, 20)),
    *(("gguf", at) for at in (1, 7, 14, 20)),
    *(("ollama", at) for at in (1, 20)),
    *(("bnb4", at) for at in (1, 10, 20)),
    ("gguf-lora", 1),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize(("format_", "at"), KILLS)
def test_a_killed_export_is_no_export_and_its_leftovers_go_with_the_next(
    run_of: RunOf, tmp_path: Path, format_: str, at: int
) -> None:
    folder = run_of("lora")
    before = digests(folder)
    out = tmp_path / "place" / "out"
    child = os.fork()
    if child == 0:
        try:
            for event in InlineEngine().run(job(folder, format_, out)):
                if isinstance(event, Progressed) and event.phase == "exporting" and event.done >= at:
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)  # never on into the other tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    left = list(out.parent.iterdir())
    assert [p.name.startswith(".out.") for p in left] == [True]
    assert digests(folder) == before
    assert isinstance(list(InlineEngine().run(job(folder, format_, out)))[-1], RunFinished)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


BREAKS: dict[str, tuple[str, Any, str, Any]] = {
    "full disk, weights": ("merged", stream, "_write_all", full_disk),
    "full disk, 4-bit weights": ("bnb4", stream, "_write_all", full_disk),
    "full disk, flush": ("merged", stream.os, "fsync", full_disk),
    "full disk, gguf": ("gguf", gguf.TensorPlan, "stored", full_disk),
    "full disk, adapter": ("adapter", writers.shutil, "copyfile", full_disk),
    "full disk, llama.cpp adapter": ("gguf-lora", writers.gguf_lora, "_stored", full_disk),
    "full disk, card": ("merged", Path, "write_text", full_disk),
    "denied, weights": ("merged", stream, "_opened_at", denied),
    "denied, folder": ("gguf", Path, "mkdir", denied),
    "denied, at the end": ("ollama", Path, "rename", denied),
}


@pytest.mark.parametrize(("format_", "where", "name", "broken"), BREAKS.values(), ids=BREAKS)
def test_a_disk_that_fails_leaves_nothing_and_touches_no_source(
    run_of: RunOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format_: str,
    where: Any,
    name: str,
    broken: Any,
) -> None:
    folder = run_of("lora")
    before = digests(folder)
    (tmp_path / "place").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken)
        end = list(InlineEngine().run(job(folder, format_, tmp_path / "place" / "out")))[-1]
    assert isinstance(end, RunFailed), end
    assert end.code in ("disk.write", "output.not_writable")
    assert list((tmp_path / "place").iterdir()) == []
    assert digests(folder) == before


@pytest.mark.parametrize("format_", ["merged", "gguf"])
@pytest.mark.parametrize("lost", ["base", "adapter"])
def test_a_source_that_vanishes_half_way_leaves_nothing(
    run_of: RunOf, tmp_path: Path, format_: str, lost: str
) -> None:
    base = make_tiny("llama", tmp_path / "base", max_shard_size="100KB")
    folder = tmp_path / "run"
    shutil.copytree(run_of(f"vanishing-{format_}-{lost}", base), folder)
    out = tmp_path / "place" / "out"
    seen: list[Event] = []
    for event in InlineEngine().run(job(folder, format_, out)):
        seen.append(event)
        if (isinstance(event, Progressed) and event.phase == "exporting" and event.done == 2) or (
            lost == "adapter" and not isinstance(event, Progressed)
        ):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(base if lost == "base" else folder / "adapter")
    end = seen[-1]
    assert isinstance(end, RunFailed | RunFinished), end
    if isinstance(end, RunFailed):
        assert list(out.parent.iterdir()) == []
    else:
        assert (out / "proof.json").is_file()  # it was gone too late to matter


@pytest.mark.parametrize("format_", ["gguf", "ollama", "bnb4", "gguf-lora"])
def test_another_base_is_refused_with_both_hashes(run_of: RunOf, tmp_path: Path, format_: str) -> None:
    base = make_tiny("llama", tmp_path / "base")
    folder = run_of(f"other-{format_}", base)
    trained_on = RunFolder(folder).record()["model"]["fingerprint"]["model.safetensors"]
    make_tiny("llama", base, seed=1)
    end = export_events(folder, format_, tmp_path / "out")[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "export.wrong_base"
    now = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    assert trained_on[:16] in end.message
    assert now[:16] in end.message
