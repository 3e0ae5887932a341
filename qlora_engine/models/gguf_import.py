"""Turns a GGUF file into a model folder, once: safetensors in bf16, tokenizer, template, and where it came from.

Imports the ML stack.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine.errors import EngineError
from qlora_engine.models import gguf_facts
from qlora_engine.models.quiet import quiet

Report = Callable[[str, int, int | None, str], None]
STEPS = 4


def convert(source: Path, target: Path, *, licence: str | None, report: Report) -> Path:
    """Convert `source` into the folder `target`, written aside and renamed.

    The file's 4- to 8-bit weights are dequantized and stored in bf16, the type such models are published in; they
    are quantized again when they are loaded.

    Raises:
        EngineError: an architecture that is not converted, a damaged file, or no room.
    """
    facts = gguf_facts.facts_of_gguf(source, source.stem)
    _require_room(target, 2 * facts.parameters)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with quiet():
            report("converting", 0, STEPS, "steps")
            tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
            report("converting", 1, STEPS, "steps")
            model = AutoModelForCausalLM.from_pretrained(
                str(source.parent), gguf_file=source.name, dtype=torch.float32
            )
            report("converting", 2, STEPS, "steps")
            _drop_marks(model)
            model.to(torch.bfloat16).save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        report("converting", 3, STEPS, "steps")
        _write_origin(aside, source, licence or facts.licence)
        aside.rename(target)
    except (OSError, ValueError, KeyError) as error:
        if (target / "config.json").is_file():
            return target  # another process was faster
        raise EngineError(
            "model.conversion",
            f"{source.name} could not be converted: {error}",
            "download it again, or use its safetensors version",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    report("converting", STEPS, STEPS, "steps")
    return target


def _drop_marks(model: Any) -> None:
    """The loaded weights are no longer GGUF; a config that says so could not be loaded again."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    end = model.config.eos_token_id
    if end is not None:
        model.generation_config.eos_token_id = end


def _write_origin(folder: Path, source: Path, licence: str | None) -> None:
    origin = {
        "kind": "gguf",
        "file": source.name,
        "sha256": _sha256(source),
        "bytes": source.stat().st_size,
        "converted_unix": time.time(),
        "stored_dtype": "bfloat16",
        "licence": licence,
    }
    (folder / "origin.json").write_text(json.dumps(origin, indent=1), encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_room(target: Path, needed_bytes: int) -> None:
    place = next(p for p in (target, *target.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed_bytes * 1.05:
        raise EngineError(
            "disk.full",
            f"converting needs {needed_bytes / 2**30:.2f} GiB, and the disk of {place} has {free / 2**30:.2f} GiB left",
            "free some space, or set QLORA_HOME to another disk",
        )
