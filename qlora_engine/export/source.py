"""What an export is made from: a finished run, its adapter, and the very base it was trained on. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.models import catalog
from qlora_engine.runs import stored
from qlora_engine.runs.record import RunFolder

FORMATS = {
    "adapter": "Adapter (PEFT)",
    "merged": "Merged model, 16-bit safetensors",
    "bnb4": "Merged model in 4 bits (bitsandbytes NF4)",
    "gguf": "GGUF file, for llama.cpp and what is built on it",
    "ollama": "Folder for Ollama: GGUF file and Modelfile",
    "gguf-lora": "Adapter as a GGUF file, for llama.cpp",
}
DTYPES = {
    "merged": ("bf16", "fp16", "fp32"),
    "bnb4": ("bf16", "fp16", "fp32"),
    "gguf": ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f32"),
    "ollama": ("q8_0", "f16", "bf16", "q5_1", "q5_0", "q4_1", "q4_0", "f32"),
    "gguf-lora": ("f32", "f16"),
}
"""What the option `dtype` may be for each format that has it; the first is the default. Of `bnb4` it is the type of what
stays out of the 4 bits, and the one that is computed with."""
MERGED = tuple(kind for kind in DTYPES if kind != "gguf-lora")
"""The formats that hold merged weights."""
INTO = ("original", "dequantized", "measured")
"""What the option `into` may be: one of the two merges, or the better one after both were measured on held-out rows."""


@dataclass(frozen=True)
class Source:
    """A run that can be exported. `adapter_config` is PEFT's."""

    folder: RunFolder
    config: TrainingConfig
    record: Mapping[str, Any]
    adapter_dir: Path
    adapter_config: Mapping[str, Any]
    base_path: Path

    @property
    def variant(self) -> str:
        return str((self.record.get("adapters") or {}).get("variant", "LoRA"))

    @property
    def embedding_rows(self) -> int | None:
        """Rows of the embeddings where the run enlarged them, else None."""
        trained = (self.adapter_config.get("trainable_token_indices") or {}).values()
        return max((max(rows) + 1 for rows in trained), default=None)


def open_source(run_dir: str) -> Source:
    """The run's adapter and its base, checked against each other.

    Raises:
        EngineError: no such run, no adapter yet, the base is gone or is another one (both hashes are named).
    """
    folder = RunFolder.open(run_dir)
    record = folder.record()
    if not (folder.adapter_dir / "adapter_model.safetensors").is_file():
        raise EngineError(
            "export.no_adapter", f"run {folder.run_id!r} has no adapter yet (it is {folder.state()})",
            f"finish it first: `qlora resume {folder.run_id}`",
        )  # fmt: skip
    stored.require_adapter(folder.path)
    base = base_path(record)
    check_base(record, base)
    config = parsing.from_json((folder.adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    return Source(folder, folder.job(), record, folder.adapter_dir, config, base)


def base_path(record: Mapping[str, Any]) -> Path:
    """The folder of the base: where it was, else where the catalog finds it now.

    Raises:
        EngineError: it is nowhere on this disk.
    """
    model = record.get("model") or {}
    path = Path(str(model.get("path", "")))
    if (path / "config.json").is_file():
        return path
    resolved = catalog.resolve(str(model.get("name", "")), model.get("revision"), offline=True)
    if resolved.path is None or resolved.needs is not None:
        raise EngineError(
            "export.no_base",
            f"the base model {model.get('name')} is not on this disk",
            "get it again on the Model page",
        )
    return resolved.path


def check_base(record: Mapping[str, Any], base: Path) -> None:
    """Refuse a base whose weights are not those the adapter was trained on (CORRECTNESS 7).

    Raises:
        EngineError: a file differs, with both hashes.
    """
    from qlora_engine.models import loading

    expected = (record.get("model") or {}).get("fingerprint") or {}
    found = loading.fingerprint(base)
    for name, digest in expected.items():
        if name.endswith(".safetensors") and found.get(name) != digest:
            raise EngineError(
                "export.wrong_base",
                f"the base in {base} is not the one this adapter was trained on: {name} has sha256 "
                f"{str(found.get(name))[:16]}..., and it was {digest[:16]}...",
                "get the original revision of the base model",
            )


def require_target(out: Path) -> None:
    """The target must be new or empty, and writable.

    Raises:
        EngineError: it holds something, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EngineError(
            "export.exists", f"{out} exists already and is not an empty folder", "choose another folder"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.parent / f".{out.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EngineError(
            "output.not_writable",
            f"{out.parent} cannot be written: {error.strerror or error}",
            "choose another folder",
        ) from error


def require_disk(out: Path, needed_bytes: int, kept_bytes: int = 0) -> None:
    """Refuse before writing when the disk is too small (CORRECTNESS 36); `kept_bytes` of it are there already.

    Raises:
        EngineError: with both numbers.
    """
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes * 1.05 - kept_bytes:
        raise EngineError(
            "disk.full",
            f"the export needs {needed_bytes / 2**30:.2f} GiB, and the disk of {out.parent} has {free / 2**30:.2f} GiB left",
            "free some space, or choose another disk",
        )
