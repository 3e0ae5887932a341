"""The export job: check, write aside, prove, rename. Imports the ML stack."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError

from qlora_engine.bridge import Emit, events_while
from qlora_engine.control import Control
from qlora_engine.data.templates import Template, choose
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.events import CheckFinished, Event, Noticed, PhaseChanged, Progressed, RunFinished
from qlora_engine.export import gguf, lab, merge, ollama, verify
from qlora_engine.export.card import model_card
from qlora_engine.export.source import (
    DTYPES,
    FORMATS,
    INTO,
    Source,
    open_source,
    require_disk,
    require_target,
)
from qlora_engine.jobs import ExportJob
from qlora_engine.models import loading, spec

SIXTEEN_BIT = {"f16": "fp16", "f32": "fp32"}
"""GGUF's names for types of torch; the merges are compared before fewer bits change both of them."""


def export_job(job: ExportJob, control: Control) -> Iterator[Event]:
    """Write a run in another form; result: {"path", "format", "bytes", "is_proven", "checks"}.

    Options:
        `verify` (default True): load it again in a fresh process and compare.
        `dtype`: how weights are stored, one of `source.DTYPES[format]`; the first is the default. The adapter has none.
        `into`: the weights the adapter is added to, for every format but the adapter: original, dequantized, or measured
            (`source.INTO`): both are scored on held-out rows against the 4-bit model with its adapter, and the better is
            written. Without it, dequantized for LoftQ, else original.

    With `into` measured, the result also has "merges": {"scores": {"live" | "original" | "dequantized": {"loss", "kl",
    "agreement"}}, "rows", "tokens", "recommended", "why"}; it stands in the model card and in `proof.json` too.

    The target appears whole or not at all.

    Raises:
        EngineError: an unknown format, no adapter, another base, no room, not writable.
        Cancelled: asked to stop; nothing is left behind.
    """
    if job.format not in FORMATS:
        raise EngineError(
            "export.format", f"there is no export format {job.format!r}", did_you_mean(job.format, FORMATS)
        )
    source = open_source(job.run_dir)
    out = Path(job.out).expanduser().resolve()
    require_target(out)
    _clear_leftovers(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    yield PhaseChanged("exporting", f"{FORMATS[job.format]}: writing to {out}")
    try:
        aside.mkdir(parents=True)
        details = yield from _write(source, aside, job, control)
        (aside / "README.md").write_text(model_card(source, job.format, details), encoding="utf-8")
        checks: list[CheckFinished] = []
        if job.options.get("verify", True):
            yield PhaseChanged("verifying", "Proving the export in a fresh process")
            checks = yield from verify.prove(source, aside, job.format, details, control)
        proof = _proof(aside, checks, details)
        (aside / "proof.json").write_text(json.dumps(proof, indent=1), encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        aside.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EngineError(
            "disk.write", f"the export could not be written: {reason}", "make room, or choose another folder",
            is_input_error=False,
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    yield RunFinished({
        "path": str(out), "format": job.format, "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
        "is_proven": proof["is_proven"], "checks": proof["checks"],
        **({"merges": details["merges"]} if "merges" in details else {}),
    })  # fmt: skip


def _clear_leftovers(out: Path) -> None:
    """Remove what exports to this place left that were killed: their process is gone."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        owner = folder.name.removeprefix(f".{out.name}.").removesuffix(".tmp")
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _write(
    source: Source, aside: Path, job: ExportJob, control: Control
) -> Generator[Event, None, dict[str, Any]]:
    if job.format == "adapter":
        require_disk(aside, sum(f.stat().st_size for f in source.adapter_dir.iterdir()))
        _write_adapter(source, aside)
        return {}
    dtype, into = _chosen(source, job)
    measured: dict[str, Any] = {}
    if into == "measured":
        comparison = yield from _compare_merges(source, dtype, control)
        into, measured = comparison.recommended, {"merges": comparison.to_json(), **comparison.card_rows()}
    if job.format == "merged":
        details = yield from _write_merged(source, aside, dtype, into, control)
    else:
        details = yield from _write_gguf(source, aside, job, dtype, into, control)
    return {**details, **measured}


def _compare_merges(source: Source, dtype: str, control: Control) -> Generator[Event, None, lab.Comparison]:
    yield PhaseChanged("evaluating", "Measuring both merges on held-out rows")

    def work(emit: Emit) -> lab.Comparison:
        return lab.compare(
            source,
            _quantizer(source),
            _quantized_modules(spec.facts_of_folder(source.base_path)),
            dtype=SIXTEEN_BIT.get(dtype, dtype if dtype in merge.DTYPES else "bf16"),
            control=control,
            report=lambda *step: emit(Progressed(*step)),
        )

    comparison = yield from events_while(work)
    yield Noticed("info", "export.merges", f"Merging {comparison.why}")
    return comparison


def _write_merged(
    source: Source, aside: Path, dtype: str, into: str, control: Control
) -> Generator[Event, None, dict[str, Any]]:
    facts = spec.facts_of_folder(source.base_path)
    require_disk(aside, facts.parameters * merge.DTYPES[dtype].itemsize)

    def work(emit: Emit) -> None:
        merge.write_merged(
            source.base_path,
            merge.read_deltas(source.adapter_dir, source.adapter_config),
            aside,
            dtype=dtype,
            quantizer=_quantizer(source) if into == "dequantized" else None,
            quantized_modules=_quantized_modules(facts),
            control=control,
            report=lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
        )

    yield from events_while(work)
    _write_surroundings(source, aside, dtype)
    return {"merged into": f"the {into} weights", "stored as": dtype, "into": into, "dtype": dtype}


def _chosen(source: Source, job: ExportJob) -> tuple[str, str]:
    """The options `dtype` and `into`.

    Raises:
        EngineError: one is not known.
    """
    known = DTYPES[job.format]
    dtype = str(job.options.get("dtype") or known[0])
    into = str(job.options.get("into") or default_merge(source))
    if job.format != "merged":
        dtype = gguf.quant_named(dtype)
    if dtype not in known or into not in INTO:
        raise EngineError(
            "export.option",
            f"no merge into {into!r} as {dtype!r}",
            f"into: {', '.join(INTO)}; dtype: {', '.join(known)}",
        )
    return dtype, into


def _write_gguf(
    source: Source, aside: Path, job: ExportJob, dtype: str, into: str, control: Control
) -> Generator[Event, None, dict[str, Any]]:
    """The GGUF file, and for Ollama the Modelfile beside it."""
    tokenizer = loading.load_tokenizer(source.base_path)
    template = choose(tokenizer, source.config.data.chat_template)
    ends = end_ids(source.record.get("load_report") or {}, tokenizer, template)
    name = source.folder.run_id
    plan = gguf.plan_file(source.base_path, name, tokenizer, template, ends, dtype)
    modelfile = ollama.modelfile(plan, f"{name}-{dtype}.gguf", ends) if job.format == "ollama" else None
    deltas = merge.read_deltas(source.adapter_dir, source.adapter_config)
    merge.require_modules(plan.tensors, deltas)
    require_disk(aside, plan.nbytes)
    file = aside / f"{name}-{dtype}.gguf"

    def work(emit: Emit) -> None:
        tensors = merge.merged_tensors(
            source.base_path,
            plan.tensors,
            deltas,
            _quantizer(source) if into == "dequantized" else None,
            _quantized_modules(spec.facts_of_folder(source.base_path)),
            control,
        )
        gguf.write_file(plan, tensors, file, lambda *step: emit(Progressed(*step)))

    yield from events_while(work)
    if modelfile is not None:
        (aside / "Modelfile").write_text(modelfile, encoding="utf-8")
    limited = (
        {"positions": f"{plan.fields['{arch}.context_length']}, the sliding window"} if plan.is_cut else {}
    )
    return {
        "merged into": f"the {into} weights", "stored as": f"GGUF {dtype.upper()}", "into": into, "dtype": dtype,
        "file": file.name, **limited,
    }  # fmt: skip


def default_merge(source: Source) -> str:
    """LoftQ's adapter makes up for what quantization lost, so it belongs to the dequantized weights; any other to the
    original ones."""
    return "dequantized" if source.config.lora.init == "loftq" else "original"


def _write_adapter(source: Source, aside: Path) -> None:
    for file in source.adapter_dir.iterdir():
        if file.is_file() and file.name != "README.md":
            shutil.copy2(file, aside / file.name)
    config = dict(source.adapter_config)
    name = str((source.record.get("model") or {}).get("name", ""))
    is_hub_id = "/" in name and not Path(name).exists()
    config["base_model_name_or_path"] = name if is_hub_id else str(source.base_path)
    (aside / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_surroundings(source: Source, aside: Path, dtype: str) -> None:
    """Config, generation config with every end token, tokenizer and the template the run was trained with."""
    config = dict(spec.read_config(source.base_path))
    config.pop("quantization_config", None)
    config["dtype"] = loading_dtype_name(dtype)
    config.pop("torch_dtype", None)
    (aside / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer = loading.load_tokenizer(source.base_path)
    template = choose(tokenizer, source.config.data.chat_template)
    generation = _read_json(source.base_path / "generation_config.json")
    ends = end_ids(source.record.get("load_report") or {}, tokenizer, template)
    if ends:
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    (aside / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")
    tokenizer.chat_template = template.jinja
    tokenizer.save_pretrained(aside)


def end_ids(load_report: Mapping[str, Any], tokenizer: Any, template: Template) -> list[int]:
    """The model's end tokens and those the run's template ends an answer with (CORRECTNESS 15)."""
    vocabulary = tokenizer.get_vocab()
    written = (vocabulary[token] for token in template.end_tokens if token in vocabulary)
    return sorted({*(load_report.get("end_token_ids") or ()), *written})


def loading_dtype_name(dtype: str) -> str:
    return str(merge.DTYPES[dtype]).removeprefix("torch.")


def _quantizer(source: Source) -> merge.Quantizer:
    load = source.record.get("load_report") or {}
    return merge.Quantizer(
        load["quant_type"], bool(load["is_double_quant"]), getattr(torch, load["compute_dtype"])
    )


def _quantized_modules(facts: spec.ModelFacts) -> frozenset[str]:
    return frozenset(
        linear.path.replace("*", str(n))
        for linear in facts.linears
        if linear.is_quantized
        for n in range(facts.layers)
    )


def _proof(aside: Path, checks: list[CheckFinished], details: Mapping[str, Any]) -> dict[str, Any]:
    hashes = {str(f.relative_to(aside)): _sha256(f) for f in sorted(aside.rglob("*")) if f.is_file()}
    ran = [c for c in checks if c.passed is not None]
    return {
        "is_proven": bool(ran) and all(c.passed for c in ran),
        "checks": [
            {"name": c.name, "passed": c.passed, "detail": c.detail, "numbers": dict(c.numbers)}
            for c in checks
        ],
        "details": dict(details),
        "sha256": hashes,
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
