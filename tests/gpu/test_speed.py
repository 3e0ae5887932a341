"""What only an NVIDIA GPU can confirm of the faster ways: attention over rows of different lengths, fused adapters, reads."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, TrainingSettings
from qlora_engine.data import batches
from qlora_engine.device import plan_device
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import loss
from qlora_engine.training.fast import install, segments
from tests.support import tiny_runs
from tests.support.tiny import make_tiny
from tests.support.tiny_runs import varied_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]
WIDE = {
    "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip


def loaded(folder: Path) -> Any:
    plan = plan_device(ModelSettings(device="cuda"))
    base = loading.load_quantized(folder, QuantizationSettings(), plan).model
    model, _ = adapters.attach(base, LoraSettings(rank=8), seed=1)
    return model.train()


def token_rows() -> list[Any]:
    from qlora_engine.data.tokenize import TokenRow

    generator = torch.Generator().manual_seed(1)
    lengths = [5 + len(row["output"]) for row in varied_rows(8)]
    rows = [torch.randint(4, 300, (length,), generator=generator).tolist() for length in lengths]
    return [TokenRow(ids, [True] * len(ids), 0, lengths=(len(ids),)) for ids in rows]


def test_rows_end_to_end_are_computed_as_each_alone(tmp_path: Path) -> None:
    """torch.nn.attention.varlen, 16-bit: the trial on the loaded model decides, and it is expected to say yes."""
    folder, rows = make_tiny("llama", tmp_path / "model", **WIDE), token_rows()
    plain, model = loaded(folder), loaded(folder)
    fast = install.install(model, TrainingSettings(), rows, device="cuda", spare_bytes=0)
    assert fast.why_not == {}
    assert fast.joins_rows
    assert fast.fuses_adapters
    batch = fast.batch(rows, 0).to("cuda")
    with segments.running(batch):
        found = loss.summed_loss(model, batch)
        found.backward()
    wanted = loss.summed_loss(plain, batches.collate(rows, 0).to("cuda"))
    wanted.backward()
    assert float(found) == pytest.approx(float(wanted), rel=5e-3)
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and "lora_B" in name:
            reference = expected[name].grad
            assert float((parameter.grad - reference).norm() / reference.norm()) < 0.05, name


def test_no_layer_waits_for_the_device(tmp_path: Path) -> None:
    """Rows travel and a pass is computed without one: torch warns of each synchronisation."""
    waits = []
    for layers in (1, 4):
        folder = make_tiny("llama", tmp_path / str(layers), num_hidden_layers=layers, **WIDE)
        model, rows = loaded(folder), token_rows()
        fast = install.install(
            model, replace(TrainingSettings(), loss="chunked"), rows, device="cuda", spare_bytes=0
        )
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                batch = fast.batch(rows, 0).to("cuda")
                with segments.running(batch):
                    loss.summed_loss(model, batch).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(one.message) for one in seen))
    assert waits == [0, 0]


def test_compiled_blocks_train_as_plain_ones_do(tmp_path: Path) -> None:
    """With Triton's code, in a whole run; how much it saves is recorded, and the card's to say."""
    folder, rows = make_tiny("llama", tmp_path / "model", **WIDE), tiny_runs.data_file(tmp_path)
    records, losses = [], []
    for wanted in ("off", "on"):
        settings = {"model__device": "cuda", "training__compile_blocks": wanted}
        events = tiny_runs.train(tiny_runs.tiny_config(folder, rows, tmp_path / "runs", **settings))
        records.append(RunFolder(tiny_runs.run_dir(events)).record()["fast_paths"])
        losses.append(tiny_runs.losses(events))
    assert not records[0]["compiled_blocks"]
    assert records[1]["compiled_blocks"], records[1]["why_not"]
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)
