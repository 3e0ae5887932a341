"""One writer per format: what it needs and refuses before any work, and how its files are made. Imports the ML stack."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.export import bnb4, card, enlarged, gguf, gguf_lora, merge, ollama, surroundings, whole_trip
from qlora_engine.export.deltas import Change, on_disk
from qlora_engine.export.journal import Journal
from qlora_engine.export.pieces import Piece
from qlora_engine.export.quantized import other_linears, quantized_paths, quantized_stacks
from qlora_engine.export.source import Source
from qlora_engine.export.stream import write_pieces
from qlora_engine.export.weights import Weights
from qlora_engine.models import names, spec

Report = Callable[[str, int, int | None, str], None]
REQUANTIZED = (
    "Quantizing the merged weights to 4 bits again rounds what was trained. The proof measures by how much; the 16-bit "
    "merge keeps more"
)

EXPERTS_STAY = ". The experts stay in 16 bits: bitsandbytes' checkpoints hold linear layers alone, so the export is hardly smaller than a merge"


@dataclass(frozen=True)
class Choice:
    """How weights are stored and what the adapter is merged into; both empty for the adapter itself."""

    dtype: str = ""
    into: str = ""


class Writer(Protocol):
    """An export that can be made. `details` go into the model card and the proof; `warning` is told before the work."""

    @property
    def nbytes(self) -> int: ...

    @property
    def details(self) -> Mapping[str, Any]: ...

    @property
    def warning(self) -> str: ...

    def write(self, journal: Journal, control: Control, report: Report) -> None:
        """Make the files in the journal's folder.

        Raises:
            OSError: the disk is full, or the source is gone.
            EngineError: a value that the chosen type cannot hold.
            Cancelled: asked to stop.
        """
        ...


def writer_of(source: Source, kind: str, choice: Choice) -> Writer:
    """The writer of a format, with everything checked that can be before the work.

    Raises:
        EngineError: what this format cannot hold, with the reason and the way out.
    """
    made: dict[str, Callable[[Source, Choice], Writer]] = {
        "adapter": _adapter, "merged": _merged, "bnb4": _requantized, "gguf": _gguf, "ollama": _ollama,
        "gguf-lora": _gguf_lora,
    }  # fmt: skip
    return made[kind](source, choice)


# ---- the adapter itself


@dataclass(frozen=True)
class AdapterWriter:
    source: Source
    nbytes: int
    details: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""

    def write(self, journal: Journal, control: Control, report: Report) -> None:
        for file in self.source.adapter_dir.iterdir():
            control.check()
            if file.is_file() and file.name != "README.md":
                shutil.copyfile(
                    file, journal.folder / file.name
                )  # not its mode: a run is its owner's, an export is not
        template = journal.folder / "chat_template.jinja"
        if template.is_file():  # a run of an earlier version kept one that lacks ends
            template.write_text(surroundings.words_of(self.source)[1].exported, encoding="utf-8")
        config = dict(self.source.adapter_config)
        name = str((self.source.record.get("model") or {}).get("name", ""))
        config["base_model_name_or_path"] = card.public(name)
        (journal.folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _adapter(source: Source, choice: Choice) -> AdapterWriter:
    return AdapterWriter(source, sum(f.stat().st_size for f in source.adapter_dir.iterdir()))


@dataclass(frozen=True)
class GgufLoraWriter:
    source: Source
    plan: gguf.Plan
    dtype: str
    nbytes: int
    details: Mapping[str, Any]
    warning: str = ""

    def write(self, journal: Journal, control: Control, report: Report) -> None:
        alpha = float(self.source.adapter_config["lora_alpha"])
        deltas = _linear_deltas(self.source)
        tensors = gguf_lora.tensors_of(self.plan, deltas, alpha)
        control.check()
        gguf_lora.write_file(self.plan, tensors, alpha, self.dtype, journal.folder / self.details["file"])
        report("exporting", len(deltas), len(deltas), "tensors")


def _gguf_lora(source: Source, choice: Choice) -> GgufLoraWriter:
    gguf_lora.require_sayable(source.adapter_config, source.config.lora.init, source.embedding_rows)
    plan = _gguf_plan(source, "f16")
    gguf_lora.tensors_of(plan, deltas := _linear_deltas(source), float(source.adapter_config["lora_alpha"]))
    elements = sum(one.elements for one in deltas.values())
    base = card.public(str((source.record.get("model") or {}).get("name")))
    details = {
        "goes on": f"a GGUF file of {base}, not quantized below 8 bits if it can be",
        "stored as": f"GGUF LoRA, {choice.dtype.upper()}", "dtype": choice.dtype, "into": "original",
        "file": f"{source.folder.run_id}-lora-{choice.dtype}.gguf",
    }  # fmt: skip
    return GgufLoraWriter(source, plan, choice.dtype, elements * (2 if choice.dtype == "f16" else 4), details)


# ---- merged weights


@dataclass(frozen=True)
class SafetensorsWriter:
    source: Source
    plan: merge.Plan
    base: Weights
    dtype: str
    nbytes: int
    details: Mapping[str, Any]
    warning: str = ""
    quantization: Mapping[str, Any] | None = None

    def write(self, journal: Journal, control: Control, report: Report) -> None:
        merge.write_safetensors(self.plan, self.base, journal, control, report)
        name = str(merge.DTYPES[self.dtype]).removeprefix("torch.")
        surroundings.write(self.source, journal.folder, name, self.quantization)


def _merged(source: Source, choice: Choice) -> SafetensorsWriter:
    found = _merge(source, choice.into)
    stored = merge.DTYPES[choice.dtype]
    nbytes = sum(math.prod(found.base.shape(name)) for name in found.base.headers) * stored.itemsize
    details = _details(choice, choice.dtype)
    return SafetensorsWriter(source, merge.AsFloats(found, stored), found.base, choice.dtype, nbytes, details)


def _requantized(source: Source, choice: Choice) -> SafetensorsWriter:
    found = _merge(source, choice.into)
    odd = sorted(whole_trip.trips(source.base_path))
    if odd:
        raise EngineError(
            "export.bnb4_layout", f"the files keep {odd[0]} in another layout than its layer, which is not written in 4 bits",
            "export it as a merged model",
        )  # fmt: skip
    bnb4.require_whole_blocks(found.base, quantized_modules(source))
    plan = bnb4.Requantized(found, quantized_modules(source), merge.DTYPES[choice.dtype])
    nbytes = bnb4.nbytes_of({name: plan.layout_of(name) for name in found.base.headers})
    details = {
        **_details(choice, f"NF4 with double quantization, the rest as {choice.dtype}"),
        "rounding": "the merged weights were quantized again, which rounds the adapter too; proof.json has by how much",
    }
    has_experts = bool(quantized_stacks(source.base_path))
    if has_experts:
        details["experts"] = f"in {choice.dtype}: bitsandbytes' checkpoints hold no stacked experts in 4 bits"
    return SafetensorsWriter(
        source, plan, found.base, choice.dtype, nbytes, details, REQUANTIZED + (EXPERTS_STAY if has_experts else ""),
        bnb4.quantization_config(choice.dtype, other_linears(source.base_path)),
    )  # fmt: skip


@dataclass(frozen=True)
class GgufWriter:
    plan: gguf.Plan
    merge: merge.Merge
    nbytes: int
    details: Mapping[str, Any]
    modelfile: str | None = None
    warning: str = ""

    def write(self, journal: Journal, control: Control, report: Report) -> None:
        done = 0

        def told(piece: Piece) -> None:
            nonlocal done
            if piece.ends:
                done += 1
                report("exporting", done, len(self.plan.tensors), "tensors")

        pieces = gguf.pieces_of(self.plan, self.merge.rows_of)
        write_pieces(journal.folder / self.details["file"], pieces, journal, control, told)
        if self.modelfile is not None:
            (journal.folder / "Modelfile").write_text(self.modelfile, encoding="utf-8")


def _gguf(source: Source, choice: Choice) -> GgufWriter:
    plan = _gguf_plan(source, choice.dtype)
    found = _merge(source, choice.into)
    details: dict[str, Any] = {
        **_details(choice, f"GGUF {choice.dtype.upper()}"),
        "file": _gguf_name(source, choice),
    }
    if plan.is_cut:
        details["positions"] = f"{plan.fields['{arch}.context_length']}, the sliding window"
    return GgufWriter(plan, found, plan.nbytes, details)


def _ollama(source: Source, choice: Choice) -> GgufWriter:
    file = _gguf(source, choice)
    ends = surroundings.words_of(source)[2]
    modelfile = ollama.modelfile(file.plan, _gguf_name(source, choice), ends)
    lacking = ollama.lacking(file.plan.tokenizer, file.plan.template, file.plan.words.adds_bos)
    details = {**file.details, **({} if lacking is None else {"Modelfile": lacking})}
    return GgufWriter(file.plan, file.merge, file.nbytes, details, modelfile)


def _gguf_plan(source: Source, quant: str) -> gguf.Plan:
    tokenizer, template, ends = surroundings.words_of(source)
    return gguf.plan_file(
        source.base_path, source.folder.run_id, tokenizer, template, ends, quant, rows=source.embedding_rows
    )


def _gguf_name(source: Source, choice: Choice) -> str:
    return f"{source.folder.run_id}-{choice.dtype}.gguf"


def _details(choice: Choice, stored_as: str) -> dict[str, Any]:
    return {
        "merged into": f"the {choice.into} weights", "stored as": stored_as, "into": choice.into, "dtype": choice.dtype,
    }  # fmt: skip


def _merge(source: Source, into: str) -> merge.Merge:
    base = enlarged.weights_of(source.base_path, source.adapter_dir)
    chosen = quantizer(source) if into == "dequantized" else None
    experts = _experts(source) if chosen is not None else {}
    whole = whole_trip.trips(source.base_path) if chosen is not None else {}
    return merge.Merge(base, _deltas(source), chosen, quantized_modules(source), experts, whole)


def _deltas(source: Source) -> dict[str, Change]:
    """By the names of the base's files."""
    found = merge.read_deltas(source.adapter_dir, source.adapter_config, source.base_path)
    return on_disk(source.base_path, found)


def _linear_deltas(source: Source) -> dict[str, merge.Delta]:
    """Those of linear layers; a GGUF LoRA file has no place for others.

    Raises:
        EngineError: experts are adapted.
    """
    found = _deltas(source)
    linear = {name: one for name, one in found.items() if isinstance(one, merge.Delta)}
    if len(linear) < len(found) or any(place.expert is not None for place in _places(source, linear)):
        raise EngineError(
            "export.experts",
            "a GGUF LoRA file holds no adapters of experts",
            "export a merged model, or the adapter",
        )
    return linear


def _places(source: Source, deltas: Mapping[str, Any]) -> list[names.Place]:
    if not source.adapter_config.get("target_parameters"):
        return []
    return [
        place
        for key, place in names.places(source.base_path).items()
        if key.removesuffix(".weight") in deltas
    ]


def _experts(source: Source) -> dict[str, list[tuple[str, names.Place]]]:
    """Tensor of the files -> all those of the same stack of experts that the run kept in 4 bits."""
    if not (source.record.get("load_report") or {}).get("expert_stacks"):
        return {}
    found: dict[str, list[tuple[str, names.Place]]] = {}
    for parameter in quantized_stacks(source.base_path):
        siblings = list(names.files_of(source.base_path, parameter).items())
        found |= {key.removesuffix(".weight"): siblings for key, _ in siblings}
    return found


def quantizer(source: Source) -> merge.Quantizer:
    """How the run's base was quantized."""
    load = source.record.get("load_report") or {}
    return merge.Quantizer(
        load["quant_type"], bool(load["is_double_quant"]), getattr(torch, load["compute_dtype"])
    )


def quantized_modules(source: Source) -> frozenset[str]:
    """The linear layers that were in 4 bits, by the names of the base's files."""
    wanted = {f"{path}.weight" for path in quantized_paths(source.base_path)}
    if wanted <= set(spec.headers_of_folder(source.base_path)):
        return frozenset(path.removesuffix(".weight") for path in wanted)
    found = names.places(source.base_path)
    return frozenset(k.removesuffix(".weight") for k, place in found.items() if place.parameter in wanted)
