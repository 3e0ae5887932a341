"""What only an NVIDIA GPU can confirm of training: paging, half precision, real out-of-memory, resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.events import (
    Event,
    ModelLoaded,
    Noticed,
    OptimizerBuilt,
    PlanMade,
    RunFinished,
    RunStopped,
    StepFinished,
)
from qlora_engine.jobs import TrainJob
from qlora_engine.training import recipe
from tests.support import tiny_runs
from tests.support.tiny import make_tiny, write_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]
WIDE = {
    "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that adapters of rank 256 have the 100,000 elements from which bitsandbytes pages."""
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "wide", **WIDE)


@pytest.fixture
def free_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def config_for(model: Path, folder: Path, **changes: Any) -> TrainingConfig:
    values = {"model__device": "cuda", "training__max_steps": 6, "lora__rank": 256, **changes}
    return tiny_runs.tiny_config(model, tiny_runs.data_file(folder), folder / "runs", **values)


def stopped_after(config: TrainingConfig, step: int) -> list[Event]:
    control, seen = Control(), []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == step:
            control.request_stop()
    assert isinstance(seen[-1], RunStopped)
    return seen


@pytest.mark.parametrize("dtype", ["auto", "fp16", "fp32"])
def test_a_run_learns_in_every_compute_type(wide: Path, tmp_path: Path, dtype: str) -> None:
    """fp16 goes through the search for a loss scale, which must not be taken for a broken run."""
    events = tiny_runs.train(
        config_for(wide, tmp_path, quantization__compute_dtype=dtype, training__max_steps=30,
                   training__eval_every_steps=30, training__learning_rate=1e-3)
    )  # fmt: skip
    end = events[-1]
    assert isinstance(end, RunFinished)
    assert end.result["loss_after"] < end.result["loss_before"]
    (plan,) = tiny_runs.of(events, PlanMade)
    (loaded,) = tiny_runs.of(events, ModelLoaded)
    assert plan.device == "cuda:0"
    assert loaded.report["device"] == "cuda:0"
    assert loaded.report["is_double_quant"] is True


def test_the_curve_is_that_of_the_cpu(wide: Path, tmp_path: Path) -> None:
    settings = {
        "quantization__compute_dtype": "fp32",
        "training__optimizer": "adamw_torch_fused",
        "lora__rank": 8,
    }
    on_gpu = tiny_runs.losses(tiny_runs.train(config_for(wide, tmp_path, **settings)))
    on_cpu = tiny_runs.losses(tiny_runs.train(config_for(wide, tmp_path, model__device="cpu", **settings)))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_paged_states_are_paged_and_stay_so_after_a_resume(
    wide: Path, tmp_path: Path, optimizer: str
) -> None:
    events = stopped_after(config_for(wide, tmp_path, training__optimizer=optimizer), 3)
    (before,) = tiny_runs.of(events, OptimizerBuilt)
    (after,) = tiny_runs.of(tiny_runs.resume(tiny_runs.run_dir(events)), OptimizerBuilt)
    assert before.paged_bytes > 0
    assert before.why_not_paged is None
    assert (after.paged_bytes, after.state_bytes) == (before.paged_bytes, before.state_bytes)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"])
def test_a_resume_goes_on_as_if_nothing_had_happened(wide: Path, tmp_path: Path, optimizer: str) -> None:
    """To rounding: not every CUDA kernel adds in the same order each time."""
    settings = {"training__optimizer": optimizer, "lora__dropout": 0.1}
    straight = tiny_runs.losses(tiny_runs.train(config_for(wide, tmp_path, **settings)))
    events = stopped_after(config_for(wide, tmp_path, **settings), 3)
    resumed = tiny_runs.resume(tiny_runs.run_dir(events))
    assert tiny_runs.losses(events) + tiny_runs.losses(resumed) == pytest.approx(straight, rel=2e-3)


def test_real_out_of_memory_goes_on_with_a_smaller_micro_batch(
    wide: Path, tmp_path: Path, free_memory: None
) -> None:
    """A bound between what one row and what sixteen rows of 256 tokens need."""
    words = " ".join(tiny_runs.WORDS * 12)
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {words}"} for n in range(32)]
    data = write_rows(tmp_path / "long.jsonl", rows)

    def run(micro_batch: int) -> list[Event]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        settings = {
            "model__device": "cuda", "data__seq_len": 256, "training__effective_batch": 16,
            "training__micro_batch": micro_batch, "training__gradient_checkpointing": False,
            "training__loss": "full", "training__max_steps": 2,
        }  # fmt: skip
        return tiny_runs.train(tiny_runs.tiny_config(wide, data, tmp_path / "runs", **settings))

    run(1)
    small = torch.cuda.max_memory_reserved()
    run(16)
    large = torch.cuda.max_memory_reserved()
    assert large - small > 64 * 2**20
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    events = run(16)
    assert isinstance(events[-1], RunFinished)
    assert "memory.micro_batch" in [e.code for e in tiny_runs.of(events, Noticed)]


def test_the_measured_peak_is_told(wide: Path, tmp_path: Path) -> None:
    end = tiny_runs.train(config_for(wide, tmp_path))[-1]
    assert isinstance(end, RunFinished)
    assert end.result["measured_peak_bytes"] > 2**20
