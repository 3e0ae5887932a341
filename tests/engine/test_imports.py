"""What importing costs: the window and the torch-free core must not pull in the ML stack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ML_STACK = ("torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "safetensors")

TORCH_FREE = [
    "qlora_engine.config_io",
    "qlora_engine.events",
    "qlora_engine.jobs",
    "qlora_engine.client",
    "qlora_engine.worker",
    "qlora_engine.runs.record",
    "qlora_engine.runs.sweep, qlora_engine.runs.comparison, qlora_engine.runs.watch, qlora_engine.cli.commands.queue",
    "qlora_engine.cli.main",
    "qlora_engine.cli.commands.doctor",
    "qlora_engine.cli.commands.train",
    "qlora_engine.cli.commands.runs",
    "qlora_engine.cli.commands.export",
    "qlora_engine.cli.commands.prompts",
    "qlora_engine.cli.commands.predictions",
    "qlora_engine.evaluate.replay_plan",
    "qlora_engine.evaluate.prediction_file",
    "qlora_engine.cli.commands.quality",
    "qlora_engine.quantization.store",
]


def loaded_by(module: str, watched: tuple[str, ...]) -> list[str]:
    """Which of `watched` a clean interpreter holds after importing `module`."""
    script = f"import sys, {module}; print(*sorted({set(watched)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120
    )
    return done.stdout.split()


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_core_is_torch_free(module: str) -> None:
    assert loaded_by(module, (*ML_STACK, "numpy", "PySide6")) == []


def test_the_watch_can_see_a_breach() -> None:
    assert loaded_by("numpy", ("numpy", "torch")) == ["numpy"]


def test_asking_for_files_imports_no_reader() -> None:
    readers = ("numpy", "pyarrow", "jinja2", "qlora_engine.data.pipeline", "qlora_engine.data.doctor")
    assert loaded_by("app.services.data_place", readers) == []


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
