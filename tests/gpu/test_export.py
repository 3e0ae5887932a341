"""What only an NVIDIA GPU can confirm of exports: a run trained there in bf16 or fp16 is exported and proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine.client import InlineEngine
from qlora_engine.events import RunFinished
from qlora_engine.jobs import ExportJob
from tests.support import tiny_runs
from tests.support.tiny import make_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base computed in 16 bits."""
    folder = tmp_path_factory.mktemp("gpu-run")
    base = make_tiny("llama", folder / "base", intermediate_size=128)
    config = tiny_runs.tiny_config(
        base, tiny_runs.data_file(folder), folder / "runs", model__device="cuda", training__max_steps=12,
        quantization__compute_dtype=request.param,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(folder / "home"))
        return tiny_runs.finished_run(config)


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("adapter", {}), ("merged", {}), ("merged", {"into": "dequantized"}), ("bnb4", {}), ("gguf", {}), ("ollama", {}),
        ("gguf-lora", {}),
    ],
)  # fmt: skip
def test_a_run_of_a_gpu_is_exported_and_proven(
    run: Path, tmp_path: Path, format_: str, options: dict[str, Any]
) -> None:
    """The weights dequantized on the CPU are those the GPU computed with: the proof compares them."""
    end = list(InlineEngine().run(ExportJob(str(run), format_, str(tmp_path / "out"), options)))[-1]
    assert isinstance(end, RunFinished), end
    assert end.result["is_proven"], end.result["checks"]


def test_the_merges_are_measured_on_the_gpu(run: Path, tmp_path: Path) -> None:
    """The live model computes in 16 bits there, so nothing is nearer to it than that rounding."""
    job = ExportJob(str(run), "merged", str(tmp_path / "out"), {"verify": False, "into": "measured"})
    end = list(InlineEngine().run(job))[-1]
    assert isinstance(end, RunFinished), end
    scores: Any = end.result["merges"]["scores"]  # type: ignore[index,call-overload]
    assert scores["dequantized"]["loss"] == pytest.approx(scores["live"]["loss"], abs=0.05)
    assert scores["dequantized"]["kl"] < 0.05
