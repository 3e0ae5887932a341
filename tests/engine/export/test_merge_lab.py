"""Both merges of a run are measured against the live quantized model, and the better one is written and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from qlora_engine import data
from qlora_engine.client import InlineEngine
from qlora_engine.events import Noticed, Progressed, RunFailed, RunFinished, RunStopped
from qlora_engine.export import lab
from qlora_engine.jobs import ExportJob
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from tests.engine.export.conftest import Export, RunOf, export_events
from tests.support import tiny_runs


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def held_out_loss(folder: Path, run: Path, base: Path) -> float:
    """Plain transformers on the run's held-out rows: mean over trained tokens."""
    config = RunFolder(run).job()
    rows = data.prepare(
        config.data, loading.load_tokenizer(base), seed=config.training.seed, model_max_length=256
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for row in rows.held_out:
        ids, trained = torch.tensor(row.input_ids), torch.tensor(row.trained)
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        losses = functional.cross_entropy(logits, ids[1:], reduction="none")[trained[1:]]
        total, tokens = total + float(losses.sum()), tokens + len(losses)
    return total / tokens


def test_both_merges_are_measured_and_the_better_is_written(
    run_of: RunOf, model_dir: Path, export: Export, tmp_path: Path
) -> None:
    run = run_of("lora")
    events = export_events(run, "merged", tmp_path / "measured", verify=False, into="measured", dtype="bf16")
    end = events[-1]
    assert isinstance(end, RunFinished), end
    merges: Any = end.result["merges"]
    scores = merges["scores"]
    for into in ("original", "dequantized"):
        out = export(run, "merged", into, into=into, dtype="bf16")
        assert scores[into]["loss"] == pytest.approx(held_out_loss(out, run, model_dir), rel=1e-4)
        if into == merges["recommended"]:
            chosen = weights_of(out)
    found = weights_of(tmp_path / "measured")
    assert all(torch.equal(found[name], chosen[name]) for name in chosen)
    # The dequantized merge is the live model but for rounding to 16 bits; the original weights differ by what 4 bits lost.
    assert 0 <= scores["dequantized"]["kl"] < 0.3 * scores["original"]["kl"]
    assert scores["dequantized"]["agreement"] > 0.97
    assert scores["dequantized"]["loss"] == pytest.approx(scores["live"]["loss"], abs=5e-3)
    assert scores["live"]["kl"] is None
    card = (tmp_path / "measured" / "README.md").read_text()
    assert f"{scores['original']['loss']:.4f}" in card
    assert merges["why"] in card
    proof = json.loads((tmp_path / "measured" / "proof.json").read_text())
    assert proof["details"]["merges"] == merges
    assert any(n.code == "export.merges" for n in tiny_runs.of(events, Noticed))


def test_loftq_belongs_to_the_dequantized_weights_and_the_measure_says_so(
    run_of: RunOf, tmp_path: Path
) -> None:
    run = run_of("loftq", lora__init="loftq")
    end = export_events(run, "merged", tmp_path / "out", verify=False, into="measured")[-1]
    assert isinstance(end, RunFinished), end
    merges: Any = end.result["merges"]
    assert merges["scores"]["dequantized"]["kl"] < 0.2 * merges["scores"]["original"]["kl"]


def test_a_gguf_file_is_made_of_the_better_merge(run_of: RunOf, tmp_path: Path) -> None:
    end = export_events(run_of("lora"), "gguf", tmp_path / "out", verify=False, into="measured")[-1]
    assert isinstance(end, RunFinished), end
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["details"]["into"] == end.result["merges"]["recommended"]  # type: ignore[index,call-overload]


def rows(*losses: float) -> list[torch.Tensor]:
    return [torch.tensor([loss]) for loss in losses]


def test_a_clear_difference_decides_and_a_doubtful_one_does_not() -> None:
    scores = {"original": lab.Score(1.0, 0.3, 0.9), "dequantized": lab.Score(1.5, 0.01, 0.99)}
    clear = {"original": rows(1.0, 1.1, 0.9, 1.0), "dequantized": rows(1.5, 1.6, 1.4, 1.52)}
    assert lab.recommend(scores, clear)[0] == "original"
    assert "1.0000 against 1.5000" in lab.recommend(scores, clear)[1]
    doubtful = {"original": rows(1.0, 2.0, 0.9, 1.0), "dequantized": rows(1.5, 1.0, 1.4, 0.6)}
    assert lab.recommend(scores, doubtful)[0] == "dequantized"
    assert "0.01000" in lab.recommend(scores, doubtful)[1]
    assert lab.recommend(scores, {"original": rows(1.0), "dequantized": rows(9.0)})[0] == "dequantized"


def test_what_cannot_be_measured_is_said(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("nothing-held-out", data__held_out_fraction=0.0)
    end = export_events(run, "merged", tmp_path / "out", into="measured")[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "export.no_held_out"
    assert "original" in end.hint
    assert list(tmp_path.iterdir()) == []


def test_a_stop_while_measuring_leaves_nothing(run_of: RunOf, tmp_path: Path) -> None:
    engine, seen = InlineEngine(), []
    out = tmp_path / "place" / "out"
    for event in engine.run(ExportJob(str(run_of("lora")), "merged", str(out), {"into": "measured"})):
        seen.append(event)
        if isinstance(event, Progressed) and event.phase == "evaluating" and event.done == 2:
            engine.request_stop()
    assert isinstance(seen[-1], RunStopped)
    assert list(out.parent.iterdir()) == []
