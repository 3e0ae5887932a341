"""An engine whose memory the system really limits: it fails to allocate, takes less, and trains the same numbers."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.events import Noticed, RunFinished
from qlora_engine.jobs import TrainJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import checkpoint, recipe, recovery
from qlora_engine.training.fast import allocator
from tests.support import tiny_runs
from tests.support.tiny import make_tiny, write_rows

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="limits what a process may write to, as Linux and glibc count it",
)
if sys.platform == "linux":
    import resource

    from tests.support import random_faults

ROWS = 8
BLOCKS = (2**25, 2**23, 2**21, 2**19)
SHARE = 0.7
"""Of what a dry step with all rows takes: too little for it, and more than half of the rows need."""


def wide_config(folder: Path, name: str, **changes: Any) -> TrainingConfig:
    """Hidden layers so wide that a row's activations, 13 MiB, are most of what a step takes."""
    model, data = folder / "wide", folder / "long.jsonl"
    if not data.exists():
        make_tiny("llama", model, num_hidden_layers=1, intermediate_size=4096)
        words = " ".join(tiny_runs.WORDS * 20)
        write_rows(
            data, [{"instruction": f"Say {n}", "input": "", "output": f"{n} {words}"} for n in range(16)]
        )
    return tiny_runs.tiny_config(
        model, data, folder / "runs", output__name=name, data__seq_len=192, training__effective_batch=ROWS,
        training__max_steps=2, training__eval_every_steps=9, training__gradient_checkpointing=False,
        training__kept_weights_gib=0.0, lora__dropout=0.0, **changes,
    )  # fmt: skip


def ended(config: TrainingConfig, prepare: Any) -> Any:
    return random_faults.engine(TrainJob(config_io.to_dict(config)), prepare)


def measuring(report: Path) -> None:
    """Write down what the dry step had alive beyond the model."""
    original = recipe.dry_step

    def measured(parts: Any, *rest: Any) -> None:
        original(parts, *rest)
        report.write_text(str(parts.transient_peak_bytes), encoding="ascii")

    recipe.dry_step = measured


def limiting(room_bytes: int) -> None:
    """From the first dry step on, what the process may write to is limited to what it has, and some room. Memory that earlier
    tests freed is not part of it."""
    original = recipe.dry_step

    def limited(*arguments: Any) -> None:
        recipe.dry_step = original
        recovery.release()
        ctypes.CDLL(None).mallopt(allocator.M_TOP_PAD, 0)  # what the heap grows by is what was asked for
        held = free_blocks()
        most = written_bytes() + room_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        original(*arguments)
        del held

    recipe.dry_step = limited


def free_blocks() -> list[torch.Tensor]:
    """All that the process could take without asking the system, but for small pieces."""
    held = []
    for size in BLOCKS:
        before = written_bytes()
        while written_bytes() == before:
            held.append(torch.empty(size, dtype=torch.uint8))
    return held


def written_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmData:")[1].split()[0])


@pytest.mark.timeout(600)
def test_a_computer_with_too_little_memory_trains_with_a_smaller_micro_batch(tmp_path: Path) -> None:
    report = tmp_path / "peak"
    whole = ended(wide_config(tmp_path, "whole", training__micro_batch=ROWS), lambda: measuring(report))
    assert isinstance(whole.last, RunFinished), whole
    room = int(SHARE * int(report.read_text(encoding="ascii")))
    limited = ended(wide_config(tmp_path, "limited", training__micro_batch=ROWS), lambda: limiting(room))
    assert isinstance(limited.last, RunFinished), limited
    said = [e.message for e in tiny_runs.of(limited.seen, Noticed) if e.code == "memory.micro_batch"]
    assert said[0] == "Out of memory: micro-batch 8 -> 4, the effective batch stays the same; going on"
    newest = checkpoint.newest(RunFolder(tmp_path / "runs" / "limited"))
    assert newest is not None
    kept = json.loads((newest / "state.json").read_text(encoding="utf-8"))["train_state"]["micro_batch"]
    assert kept < ROWS
    same = ended(wide_config(tmp_path, "same", training__micro_batch=kept), lambda: None)
    assert tiny_runs.losses(limited.seen) == tiny_runs.losses(same.seen)
    assert len(tiny_runs.losses(limited.seen)) == 2
