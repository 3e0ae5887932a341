"""A run in an engine whose memory the system limits, beside one that was given as few rows at once from the beginning.

`python -m tests.support.limited_memory FOLDER` prints one JSON document. In an interpreter of its own: what earlier tests
freed is memory too, which the process could take without asking the system.
"""

from __future__ import annotations

import ctypes
import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from qlora_engine import config_io, paths
from qlora_engine.config import TrainingConfig
from qlora_engine.events import Noticed, RunFinished
from qlora_engine.jobs import TrainJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import checkpoint, recipe, recovery
from qlora_engine.training.fast import allocator
from tests.support import random_faults, tiny_runs
from tests.support.tiny import make_tiny, write_rows

ROWS = 8
SHARE = 0.7
"""Of what a dry step with all rows takes: too little for it, and more than half of the rows need."""


def main(folder: Path) -> int:
    """{"peak_bytes", "said", "kept", "losses", "losses_with_fewer"}; of a run that failed, how it ended."""
    torch.set_num_threads(1)  # an engine is forked from here: it would wait for threads that it does not have
    report = folder / "peak"
    whole = ended(wide_config(folder, "whole", training__micro_batch=ROWS), lambda: measuring(report))
    room = int(SHARE * int(report.read_text(encoding="ascii")))
    shutil.rmtree(paths.cache_dir() / "starts")  # what is known to fit would not be tried
    limited = ended(wide_config(folder, "limited", training__micro_batch=ROWS), lambda: limiting(room))
    newest = checkpoint.newest(RunFolder(folder / "runs" / "limited"))
    assert newest is not None, limited
    kept = json.loads((newest / "state.json").read_text(encoding="utf-8"))["train_state"]["micro_batch"]
    same = ended(wide_config(folder, "same", training__micro_batch=kept), lambda: None)
    found = {
        "ended": [repr(one.last) for one in (whole, limited, same) if not isinstance(one.last, RunFinished)],
        "said": [e.message for e in tiny_runs.of(limited.seen, Noticed) if e.code == "memory.micro_batch"],
        "kept": kept,
        "losses": tiny_runs.losses(limited.seen),
        "losses_with_fewer": tiny_runs.losses(same.seen),
    }
    print(json.dumps(found))
    return 0


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
    """From the first dry step on, what the process may write to is limited to what it has, and some room."""
    original = recipe.dry_step

    def limited(*arguments: Any) -> None:
        recipe.dry_step = original
        ctypes.CDLL(None).mallopt(allocator.M_TOP_PAD, 0)  # what the heap grows by is what was asked for
        recovery.release()
        most = written_bytes() + room_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        original(*arguments)

    recipe.dry_step = limited


def written_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmData:")[1].split()[0])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
