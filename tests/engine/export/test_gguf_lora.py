"""The adapter as a file for llama.cpp: its names, its order of heads, its scale; and what such a file cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qlora_engine.client import InlineEngine
from qlora_engine.events import RunFailed, RunFinished
from qlora_engine.export import gguf, source, surroundings
from qlora_engine.export.merge import Merge
from qlora_engine.export.reopened import gguf_of
from qlora_engine.export.weights import Weights
from qlora_engine.jobs import ExportJob
from qlora_engine.models import gguf_facts, gguf_import
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.engine.export.test_gguf import SHAPES
from tests.engine.export.test_promises import distance, logits
from tests.support.tiny import make_tiny


def base_file(run: Path, folder: Path) -> Path:
    """The run's base as a GGUF file in fp32, untouched by the adapter."""
    opened = source.open_source(str(run))
    plan = gguf.plan_file(opened.base_path, "base", *surroundings.words_of(opened), "f32")
    merge = Merge(Weights.of(opened.base_path), {})
    file = folder / "base.gguf"
    file.write_bytes(b"".join(piece.make() for piece in gguf.pieces_of(plan, merge.rows_of)))
    return file


def add(base: Path, adapter: Path) -> None:
    """What llama.cpp does with `--lora`: alpha / rank B A on the weight of that name, in its own order of rows."""
    reader = gguf_package.GGUFReader(base, "r+")
    lora = gguf_package.GGUFReader(adapter)
    alpha = float(lora.fields["adapter.lora.alpha"].contents())
    factors = {t.name: np.asarray(t.data, dtype=np.float32) for t in lora.tensors}
    for tensor in reader.tensors:
        a, b = factors.pop(f"{tensor.name}.lora_a", None), factors.pop(f"{tensor.name}.lora_b", None)
        if a is not None and b is not None:
            tensor.data[:] += alpha / a.shape[0] * (b @ a)
    assert factors == {}
    reader.data.flush()


def read(file: Path) -> Any:
    return gguf_import.read(file, gguf_facts.facts_of_gguf(file, "x"), lambda *_: None)[0]


@pytest.mark.parametrize("family", SHAPES)
def test_on_a_base_file_it_is_what_peft_computes(
    run_of: RunOf, export: Export, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, family: str
) -> None:
    base = make_tiny(family, tmp_path_factory.mktemp(family) / "base", **SHAPES[family])
    run = run_of(f"lora-file-{family}", base)
    out = export(run, "gguf-lora")
    file = base_file(run, tmp_path)
    alone = logits(read(file))
    add(file, gguf_of(out))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(plain, run / "adapter"))
    assert distance(logits(read(file)), wanted) < 1e-5
    assert distance(alone, wanted) > 1e-3
    assert failed(proven(run, out, "gguf-lora")) == []


def test_the_file_says_what_llama_cpp_asks_for(run_of: RunOf, export: Export) -> None:
    run = run_of("rslora", lora__rslora=True)
    out = export(run, "gguf-lora", dtype="f16")
    assert gguf_of(out).name == "rslora-lora-f16.gguf"
    reader = gguf_package.GGUFReader(gguf_of(out))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 24.0
    shapes = {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors}
    assert len(shapes) == 2 * 14
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (128, 8)  # ggml's order: in, rank
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (8, 64)
    assert {t.tensor_type.name for t in reader.tensors} == {"F16"}
    checks = proven(run, out, "gguf-lora")
    assert failed(checks) == [], checks
    assert 0 < checks["logits equal base + adapter"][1]["largest_relative"] < 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [("dora", {"lora__dora": True}, "DoRA"), ("loftq", {"lora__init": "loftq"}, "LoftQ")],
)
def test_what_it_cannot_say_is_refused_with_the_reason(
    run_of: RunOf, tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    out = tmp_path / "place" / "out"
    end = list(InlineEngine().run(ExportJob(str(run_of(name, **changes)), "gguf-lora", str(out), {})))[-1]
    assert isinstance(end, RunFailed)
    assert words in end.message
    assert "gguf" in end.hint
    assert list(out.parent.iterdir()) == []


def test_a_spoiled_scale_fails_its_check(run_of: RunOf, export: Export) -> None:
    run = run_of("lora")
    out = export(run, "gguf-lora")
    reader = gguf_package.GGUFReader(gguf_of(out), "r+")
    reader.fields["adapter.lora.alpha"].parts[-1][:] = 12.0
    reader.data.flush()
    del reader
    assert "logits equal base + adapter" in failed(proven(run, out, "gguf-lora"))


@pytest.mark.slow
def test_it_is_proven_in_a_process_of_its_own(run_of: RunOf, tmp_path: Path) -> None:
    end = export_events(run_of("lora"), "gguf-lora", tmp_path / "out")[-1]
    assert isinstance(end, RunFinished), end
    assert end.result["is_proven"], end.result["checks"]
