"""What only an NVIDIA GPU can confirm of the quality report: the CUDA kernels store and compute as measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_engine import config_io, data, jobs
from qlora_engine.config import QuantizationSettings, TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.data.batches import collate
from qlora_engine.device import plan_device
from qlora_engine.events import RunFinished
from qlora_engine.models import loading
from qlora_engine.quantization.report import report_from
from qlora_engine.quantization.roundtrip import round_trip
from qlora_engine.quantization.variants import Variant, grid
from qlora_engine.training import loss as losses
from tests.support.tiny import instruction_rows, make_tiny, write_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("variant", grid((64, 256)), ids=lambda variant: variant.key)
def test_the_gpu_stores_as_the_cpu_does(variant: Variant) -> None:
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    here, there = round_trip(weight, variant), round_trip(weight.cuda(), variant)
    assert there.stored_bytes == here.stored_bytes
    off = (there.weight.cpu() - here.weight).abs() > 1e-5
    assert float(off.float().mean()) < 0.001  # a weight just between two levels may fall to either side


def test_the_loss_is_that_of_the_model_that_training_loads(tmp_path: Path) -> None:
    """Rows of 96 inputs too: the CUDA kernels count blocks through the whole weight."""
    path = make_tiny("llama", tmp_path / "tiny")
    rows = write_rows(tmp_path / "rows.jsonl", instruction_rows(30))
    config = TrainingConfig()
    values = {
        "model.name": str(path),
        "model.device": "cuda",
        "data.path": str(rows),
        "data.held_out_fraction": 0.3,
    }
    for name, value in values.items():
        config = with_value(config, name, value)
    job = jobs.QualityJob(config_io.to_dict(config), {"block_sizes": [64], "max_rows": 4})
    last = list(jobs.carry_out(job, Control()))[-1]
    assert isinstance(last, RunFinished)
    held_out = report_from(last.result).held_out
    assert held_out is not None
    plan = plan_device(config.model, "auto")
    loaded = loading.load_quantized(path, QuantizationSettings(), plan)
    prepared = data.prepare(config.data, loaded.tokenizer, seed=config.training.seed)
    live = [
        losses.token_losses(loaded.model, collate([row], 0).to(plan.name))[0] for row in prepared.held_out[:4]
    ]
    assert held_out.scores["nf4-64-dq"].row_losses == pytest.approx(live, rel=2e-3)
