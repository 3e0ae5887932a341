"""Turns a GGUF file into a model folder, once: safetensors in bf16, tokenizer, template, and where it came from.

Imports the ML stack.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from qlora_engine.errors import EngineError
from qlora_engine.models import gguf_facts, gguf_rope
from qlora_engine.models.catalog import STARTER_PACKAGE
from qlora_engine.models.files import ORIGIN_FILE
from qlora_engine.models.gguf_header import GgufHeader, read_header
from qlora_engine.models.quiet import quiet
from qlora_engine.models.spec import ModelFacts

Report = Callable[[str, int, int | None, str], None]


def convert(source: Path, target: Path, *, licence: str | None, report: Report) -> Path:
    """Convert `source` into the folder `target`, written aside and renamed.

    The file's 4- to 8-bit weights are dequantized and stored in bf16, the type such models are published in; they
    are quantized again when they are loaded. `report` may raise to stop; nothing is left then.

    Raises:
        EngineError: an architecture that is not converted, a damaged file, or no room.
    """
    facts = gguf_facts.facts_of_gguf(source, source.stem)
    _require_room(target, 2 * facts.parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        _convert_into(aside, source, facts, report)
        _write_origin(aside, source, licence or facts.licence)
        for file in aside.iterdir():
            _flush(file)
        aside.rename(target)
    except EngineError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        if (target / "config.json").is_file():
            return target  # another process was faster
        raise EngineError(
            "model.conversion",
            f"{source.name} could not be converted: {str(error).strip().splitlines()[0][:200]}",
            "download it again, or use its safetensors version",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert_into(folder: Path, source: Path, facts: ModelFacts, report: Report) -> None:
    total = len(read_header(source).tensors)
    model, tokenizer = read(source, facts, report)
    with quiet():
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    report("converting", total, total, "tensors")


def read(source: Path, facts: ModelFacts, report: Report) -> tuple[Any, Any]:
    """The file's model, dequantized to fp32, and its tokenizer.

    Raises:
        EngineError: positions that are scaled in an unknown way, or tensors that would be lost.
    """
    header = read_header(source)
    total = len(header.tensors)
    scaling = gguf_rope.scaling_of(header, rope_freqs(header, source))
    with quiet(), _read_once(), _watch_tensors(total, report):
        report("converting", 0, total, "tensors")
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        model, found = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, output_loading_info=True
        )
        _require_same(model, found, facts, source)
        _drop_marks(model)
        scale_positions(model.config, scaling)
    return model, tokenizer


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """transformers 5 parses the file three times and builds the table of names once per module: two thirds of the
    time. While inside, both are made once."""
    import gguf

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, originals)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals


@contextlib.contextmanager
def _watch_tensors(total: int, report: Report) -> Iterator[None]:
    """Count the tensors as transformers dequantizes them, in place of the bar that it always draws."""

    def counted(tensors: Iterable[Any], desc: str = "") -> Iterator[Any]:
        for done, tensor in enumerate(tensors, start=1):
            report("converting", min(done, total - 1), total, "tensors")
            yield tensor

    original = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = counted
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = original


def _require_same(model: Any, found: Any, facts: ModelFacts, source: Path) -> None:
    """transformers passes over tensors that it has no place for, and fills those that it misses with noise."""
    lost = sorted(found.get("missing_keys", ()))
    built = sum(p.numel() for p in model.parameters())
    stored = gguf_facts.stored_parameters(read_header(source))
    if lost or not built == stored == facts.parameters:
        why = f"{lost[0]} is not in it" if lost else f"{stored:,} parameters would become {built:,}"
        raise EngineError(
            "model.conversion",
            f"{source.name} could not be converted whole: {why}",
            "use the model's safetensors version",
        )


def rope_freqs(header: GgufHeader, source: Path) -> list[float] | None:
    """The divisors of a Llama 3.1 file's frequencies."""
    if "rope_freqs.weight" not in header.tensors:
        return None
    import gguf

    reader = gguf.GGUFReader(source)
    found = next(t for t in reader.tensors if t.name == "rope_freqs.weight")
    return [float(value) for value in found.data]


def scale_positions(config: Any, scaling: dict[str, Any] | None) -> None:
    """Gemma 3 keeps the positions of its sliding and full layers apart and scales those of the full ones."""
    if scaling is None:
        return
    parameters = dict(config.rope_parameters)
    if "full_attention" in parameters:
        parameters["full_attention"] = {**parameters["full_attention"], **scaling}
    else:
        parameters = {**parameters, **scaling}
    config.rope_parameters = parameters


def _clear_leftovers(target: Path) -> None:
    """Remove what conversions left that were killed: their process is gone."""
    for folder in target.parent.glob(f".{target.name}.*.*"):
        owner = folder.name.removeprefix(f".{target.name}.").split(".", 1)[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


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
        "package": _package_of(source),
        "sha256": _sha256(source),
        "bytes": source.stat().st_size,
        "converted_unix": time.time(),
        "stored_dtype": "bfloat16",
        "licence": licence,
    }
    (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")


def _package_of(source: Path) -> str | None:
    """`name version` of the installed package that the file is part of."""
    if STARTER_PACKAGE not in source.parts:
        return None
    try:
        return f"{STARTER_PACKAGE} {metadata.version(STARTER_PACKAGE)}"
    except metadata.PackageNotFoundError:
        return STARTER_PACKAGE


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
