"""The export job: check, write aside, prove, rename; or leave what is whole for the next one. Imports the ML stack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import __version__
from qlora_engine.bridge import Emit, events_while
from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError, did_you_mean
from qlora_engine.events import (
    CheckFinished,
    Event,
    Noticed,
    PhaseChanged,
    Progressed,
    RunFinished,
    RunStopped,
)
from qlora_engine.export import gguf, lab, merge, surroundings, verify, writers
from qlora_engine.export.card import model_card
from qlora_engine.export.journal import FILE, Journal, Kept
from qlora_engine.export.source import (
    DTYPES,
    FORMATS,
    INTO,
    MERGED,
    Source,
    open_source,
    require_disk,
    require_target,
)
from qlora_engine.export.writers import Choice, Writer
from qlora_engine.jobs import ExportJob
from qlora_engine.models.packing import is_used_as_it_is

SIXTEEN_BIT = {"f16": "fp16", "f32": "fp32"}
"""GGUF's names for types of torch; the merges are compared before fewer bits change both of them."""


def export_job(job: ExportJob, control: Control) -> Iterator[Event]:
    """Write a run in another form; result: {"path", "format", "bytes", "is_proven", "checks"}.

    Options:
        `verify` (default True): load it again in a fresh process and compare.
        `dtype`: how weights are stored, one of `source.DTYPES[format]`; the first is the default. The adapter has none.
        `into`: the weights the adapter is added to, for every format with merged weights: original, dequantized, or
            measured (`source.INTO`): both are scored on held-out rows against the 4-bit model with its adapter, and the
            better is written. Without it, dequantized for LoftQ, else original.

    Where the chat template in it lacks ends that training put behind answers, the result has "chat_template", a sentence.
    With `into` measured, it also has "merges": {"scores": {"live" | "original" | "dequantized": {"loss", "kl",
    "agreement"}}, "rows", "tokens", "recommended", "why"}; it stands in the model card and in `proof.json` too.

    The target appears whole or not at all. A large export that breaks off leaves what is certain in a folder beside the
    target (`journal`); the same export goes on from there, and RunStopped says so: {"path", "kept", "kept_bytes"}.

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
    choice, measured = yield from _chosen(source, job, control)
    writer = writers.writer_of(source, job.format, choice)
    try:
        journal = Journal(out, _key(source, job.format, choice))
    except OSError as error:
        raise _write_error(source, error, None) from error
    details = {**surroundings.notes(source), **writer.details, **measured}
    export = _Export(job, source, writer, details, journal, out)
    yield from _whole_or_kept(export, control)


@dataclass(frozen=True)
class _Export:
    """What is written from what: aside in the journal's folder, until it becomes `out`. `details` stand in card and proof."""

    job: ExportJob
    source: Source
    writer: Writer
    details: Mapping[str, Any]
    journal: Journal
    out: Path


def _whole_or_kept(export: _Export, control: Control) -> Iterator[Event]:
    """The target, or what is whole of it left for the next one: after a bug nothing, for it may not be."""
    try:
        yield from _write(export, control)
        proof = yield from _prove(export, control)
        _put_in_place(export.journal, export.out)
    except Cancelled:
        kept = export.journal.leave(keep=True)
        if kept is None:
            raise
        yield _stopped(export.out, kept)
    except OSError as error:
        raise _write_error(export.source, error, export.journal.leave(keep=True)) from error
    except BaseException:
        export.journal.leave(keep=False)
        raise
    else:
        yield _finished(export, proof)


def _chosen(
    source: Source, job: ExportJob, control: Control
) -> Generator[Event, None, tuple[Choice, dict[str, Any]]]:
    """The options `dtype` and `into`, measured where that was asked, and what the measuring found.

    Raises:
        EngineError: one is not known.
    """
    if job.format not in DTYPES:
        return Choice(), {}
    known = DTYPES[job.format]
    dtype = str(job.options.get("dtype") or known[0])
    into = str(job.options.get("into") or default_merge(source))
    if job.format in ("gguf", "ollama"):
        dtype = gguf.quant_named(dtype)
    if dtype not in known or into not in INTO:
        raise EngineError(
            "export.option",
            f"no merge into {into!r} as {dtype!r}",
            f"into: {', '.join(INTO)}; dtype: {', '.join(known)}",
        )
    if is_used_as_it_is(source.base_path):
        into = "original"  # the 4-bit weights themselves: there are no others
    if into != "measured" or job.format not in MERGED:
        return Choice(dtype, into), {}
    writers.writer_of(source, job.format, Choice(dtype, "original"))  # refuses before the long measuring
    comparison = yield from _compare_merges(source, dtype, control)
    return Choice(dtype, comparison.recommended), {
        "merges": comparison.to_json(),
        **comparison.card_rows(),
    }


def _compare_merges(source: Source, dtype: str, control: Control) -> Generator[Event, None, lab.Comparison]:
    yield PhaseChanged("evaluating", "Measuring both merges on held-out rows")

    def work(emit: Emit) -> lab.Comparison:
        return lab.compare(
            source,
            writers.quantizer(source),
            dtype=SIXTEEN_BIT.get(dtype, dtype if dtype in merge.DTYPES else "bf16"),
            control=control,
            report=lambda *step: emit(Progressed(*step)),
        )

    comparison = yield from events_while(work)
    yield Noticed("info", "export.merges", f"Merging {comparison.why}")
    return comparison


def _write(export: _Export, control: Control) -> Iterator[Event]:
    """Weights, tokenizer and model card."""
    writer, journal = export.writer, export.journal
    require_disk(journal.folder, writer.nbytes, journal.resumed_bytes)
    yield PhaseChanged("exporting", f"{FORMATS[export.job.format]}: writing to {export.out}")
    if writer.warning:
        yield Noticed("warning", "export.rounding", writer.warning)
    if "chat template" in export.details:
        yield Noticed("warning", "export.chat_template", export.details["chat template"])
    if journal.resumed_bytes:
        gib = journal.resumed_bytes / 2**30
        yield Noticed(
            "info", "export.resumed", f"Going on with an export that broke off: {gib:.2f} GiB of it are whole"
        )
    yield from events_while(
        lambda emit: writer.write(journal, control, lambda *step: emit(Progressed(*step)))
    )
    card = model_card(export.source, export.job.format, export.details)
    (journal.folder / "README.md").write_text(card, encoding="utf-8")


def _prove(export: _Export, control: Control) -> Generator[Event, None, dict[str, Any]]:
    """`proof.json`, as it stands in the folder: what was checked, and the hash of every file."""
    folder, checks = export.journal.folder, list[CheckFinished]()
    if export.job.options.get("verify", True):
        yield PhaseChanged("verifying", "Proving the export in a fresh process")
        checks = yield from verify.prove(export.source, folder, export.job.format, export.details, control)
    hashes = _hashes(folder, control)
    if checks:
        checks.append(verify.check_files(hashes, export.journal.marks))
        yield checks[-1]
    proof = _proof(checks, export.details, hashes)
    (folder / "proof.json").write_text(json.dumps(proof, indent=1), encoding="utf-8")
    return proof


def _put_in_place(journal: Journal, out: Path) -> None:
    journal.finish()
    if out.is_dir():
        out.rmdir()
    journal.folder.rename(out)


def _finished(export: _Export, proof: Mapping[str, Any]) -> RunFinished:
    nbytes = sum(file.stat().st_size for file in export.out.rglob("*") if file.is_file())
    told = {
        name.replace(" ", "_"): export.details[name]
        for name in ("merges", "chat template")
        if name in export.details
    }
    return RunFinished({
        "path": str(export.out), "format": export.job.format, "bytes": nbytes, "is_proven": proof["is_proven"],
        "checks": proof["checks"], **told,
    })  # fmt: skip


def default_merge(source: Source) -> str:
    """LoftQ's adapter makes up for what quantization lost, so it belongs to the dequantized weights; any other to the
    original ones."""
    return "dequantized" if source.config.lora.init == "loftq" else "original"


def _key(source: Source, kind: str, choice: Choice) -> dict[str, Any]:
    """What must be the same for an export to go on: run, adapter, base, options and this program."""
    adapter = {
        file.name: _sha256(file)
        for file in sorted(source.adapter_dir.iterdir())
        if file.name.startswith("adapter_")
    }
    return {
        "run": source.folder.run_id, "adapter": adapter, "base": (source.record.get("model") or {}).get("fingerprint") or {},
        "format": kind, "dtype": choice.dtype, "into": choice.into, "version": __version__,
    }  # fmt: skip


def _stopped(out: Path, kept: Kept) -> RunStopped:
    gib = kept.nbytes / 2**30
    reason = f"{gib:.2f} GiB are whole and kept in {kept.folder}; the same export goes on from there, or delete that folder"
    return RunStopped(
        reason,
        is_resumable=True,
        result={"path": str(out), "kept": str(kept.folder), "kept_bytes": kept.nbytes},
    )


def _write_error(source: Source, error: OSError, kept: Kept | None) -> EngineError:
    reason = error.strerror or str(error)
    lost = str(error.filename or "")
    if lost and any(Path(lost).is_relative_to(p) for p in (source.base_path, source.folder.path)):
        return EngineError(
            "export.source_lost", f"{lost} could not be read any more: {reason}",
            "see that the base model and the run are still there, and export again", is_input_error=False,
        )  # fmt: skip
    hint = "make room, or choose another folder"
    if kept is not None:
        gib = kept.nbytes / 2**30
        hint = f"make room and export again: it goes on from the {gib:.2f} GiB kept in {kept.folder}; or delete that folder"
    return EngineError("disk.write", f"the export could not be written: {reason}", hint, is_input_error=False)


def _hashes(folder: Path, control: Control) -> dict[str, str]:
    """sha256 of every file as it is read back from the disk."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != FILE:
            control.check()
            found[str(file.relative_to(folder))] = _sha256(file)
    return found


def _proof(
    checks: list[CheckFinished], details: Mapping[str, Any], hashes: Mapping[str, str]
) -> dict[str, Any]:
    ran = [c for c in checks if c.passed is not None]
    return {
        "is_proven": bool(ran) and all(c.passed for c in ran),
        "checks": [
            {"name": c.name, "passed": c.passed, "detail": c.detail, "numbers": dict(c.numbers)}
            for c in checks
        ],
        "details": dict(details),
        "sha256": dict(hashes),
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
