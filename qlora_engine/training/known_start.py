"""What the trials of a start found, kept for the next start of the same base, settings, machine and program. Imports torch.

On the CPU alone, where they take seconds: which faster ways bear the trial out, whether the loss may be computed in chunks, and what the
longest rows need. A start that finds as much memory free tries none of it again; whatever is changed is tried anew. Only what
went well is kept: a run that had to leave something out, or ran out of memory, tries again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from qlora_engine import config_io, kept, parsing, paths
from qlora_engine.data import batches
from qlora_engine.data.tokens import lengths_of
from qlora_engine.training import room
from qlora_engine.training.versions import versions

SCHEMA = 1
INDIFFERENT = frozenset({
    "epochs", "max_steps", "learning_rate", "schedule", "schedule_cycles", "schedule_power", "warmup_ratio", "effective_batch",
    "epsilon", "weight_decay", "max_grad_norm", "seed", "eval_every_steps", "eval_rows", "early_stopping", "keep_best",
    "sample_prompts", "sample_tokens", "end_rows", "end_tokens",
})  # fmt: skip
"""Settings of training that no trial depends on."""
ROOM = 1.25
"""Of what the longest rows were seen to need, this must be free; else they are tried again."""


@dataclass
class KnownStart:
    """`ways` is FastPaths.to_remember of the trial, None where it must be made; `peaks`: bytes beyond the model that the longest rows
    took, by their number and lengths. `is_chunkable`: the loss in chunks is the model's own."""

    file: Path | None = None
    ways: Mapping[str, Any] | None = None
    is_chunkable: bool = False
    peaks: dict[str, int] = field(default_factory=dict)


def read(parts: Any, fingerprint: Mapping[str, str]) -> KnownStart:
    """What is known of a start like this one; nothing on a GPU."""
    if parts.plan.kind != "cpu" or parts.config.training.compile_blocks != "off":
        return KnownStart()
    file = paths.cache_dir() / "starts" / f"{_key(parts, fingerprint)}.json"
    try:
        found = parsing.from_json(file.read_text(encoding="utf-8"))
        peaks = {str(rows): int(size) for rows, size in found["peaks"].items()}
        groups = [[int(place) for place in group] for group in found["ways"]["groups"]]
        return KnownStart(file, {"groups": groups}, bool(found["is_chunkable"]), peaks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return KnownStart(file)


def has_room(parts: Any, micro_batch: int) -> bool:
    """True where the longest rows were tried before and what they took is free; `parts` then knows what that was."""
    peak = parts.known.peaks.get(_longest(parts, micro_batch))
    if (
        peak is None
        or _is_limited()
        or room.usable_bytes(parts.plan) < ROOM * (peak + _optimizer_bytes(parts))
    ):
        return False
    parts.transient_peak_bytes = peak
    return True


def keep(parts: Any, micro_batch: int) -> None:
    """After the longest rows were tried and nothing had to be given up."""
    known, ways, peak = parts.known, parts.fast.to_remember(), parts.transient_peak_bytes
    if known.file is None or ways is None or peak is None or not parts.is_chunkable:
        return
    peaks = {**known.peaks, _longest(parts, micro_batch): peak}
    kept.keep(known.file, {"ways": ways, "is_chunkable": True, "peaks": peaks})


def _key(parts: Any, fingerprint: Mapping[str, str]) -> str:
    config = config_io.to_dict(parts.config)
    told = {
        "schema": SCHEMA,
        "program": _program(),
        "versions": versions(),
        "machine": [
            torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(),
            parts.plan.torch_dtype_name,
        ],
        "base": dict(fingerprint),
        "rows": parts.model.get_input_embeddings().weight.shape[0],
        "model": config["model"],
        "quantization": config["quantization"],
        "lora": config["lora"],
        "training": {name: value for name, value in config["training"].items() if name not in INDIFFERENT},
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _program() -> str:
    """Changes with every change of this program's code."""
    root = Path(__file__).resolve().parents[1]
    stamps = sorted(
        (str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in root.rglob("*.py")
    )
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


def _longest(parts: Any, micro_batch: int) -> str:
    """The longest micro-batch: lengths and trained tokens of its rows, and how its loss is computed."""
    rows = batches.longest(parts.data.train, micro_batch)
    shape = [(length, sum(row.trained)) for length, row in zip(lengths_of(rows).tolist(), rows, strict=True)]
    return hashlib.sha256(repr((shape, parts.loss_kind, parts.fast.to_json())).encode()).hexdigest()[:16]


def _optimizer_bytes(parts: Any) -> int:
    """Two moments in fp32: more than any optimizer here takes."""
    return 8 * sum(p.numel() for p in parts.model.parameters() if p.requires_grad)


def _is_limited() -> bool:
    """Free memory says nothing of a limit that this process alone has."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    limits = (getattr(resource, name, None) for name in ("RLIMIT_AS", "RLIMIT_DATA"))
    return any(
        limit is not None and resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits
    )
