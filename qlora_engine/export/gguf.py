"""Makes a GGUF file of a merged run, some rows at a time, the way llama.cpp's converter names and orders things.

Imports the ML stack. What a file cannot say, or what would be lost on reading it back, is refused before any work: the
file's header is written first, read back, and compared with the base.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quant
from transformers import AutoConfig

from qlora_engine.data.templates import Template
from qlora_engine.errors import EngineError
from qlora_engine.export import gguf_fields, gguf_tokenizer
from qlora_engine.export.gguf_settings import require_same_settings
from qlora_engine.export.merge import Rows
from qlora_engine.export.nf4 import whole_blocks
from qlora_engine.export.pieces import Piece, of_bytes, of_tensor, row_spans
from qlora_engine.models import gguf_header, gguf_import, gguf_rope, spec
from qlora_engine.models.quiet import quiet

KINDS = {
    "f32": (Quant.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Quant.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Quant.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Quant.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Quant.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Quant.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Quant.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Quant.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
ALIASES = {"fp16": "f16", "fp32": "f32"}
FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
EDGES = ("token_embd", "output")
LARGEST_F16 = 65504.0
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.", "  two  spaces\tand\n\nlines \n", "Gr\u00fc\u00dfe, \u4e16\u754c! \U0001f600",
    "def f(x):\n    return x ** 2  # \u2264 4", "don't I'll we've THEY'RE", "3.14159, 1_000_000 and 2024-01-31", "a",
    "https://example.org/?q=1&r=%20", "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627",
)  # fmt: skip


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file: the base's name for it, its own, and how it is stored. `heads`: of a q or k projection
    whose rows llama.cpp orders another way; `shift`: what llama.cpp leaves out of a norm."""

    source: str
    name: str
    shape: tuple[int, ...]
    kind: Quant
    heads: int | None = None
    shift: float = 0.0

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size

    @property
    def rows_per_head(self) -> int:
        """Rows that are ordered together."""
        return 1 if self.heads is None else self.shape[0] // self.heads

    def made(self, rows: Rows, start: int, stop: int) -> memoryview:
        """The bytes of some rows; whole heads where they are ordered another way."""
        stored = self.stored(rows(start, stop, torch.float32).numpy())
        return of_tensor(torch.from_numpy(np.ascontiguousarray(stored).view(np.uint8)))

    def stored(self, values: np.ndarray) -> np.ndarray:
        """fp32 `values`, some rows of the tensor, as the file holds them.

        Raises:
            EngineError: too large for fp16.
        """
        if self.heads is not None:
            values = interleave(values, values.shape[0] // self.rows_per_head)
        values = values + np.float32(self.shift) if self.shift else values
        if self.kind is Quant.F16 and float(np.abs(values).max(initial=0.0)) > LARGEST_F16:
            raise EngineError(
                "export.range",
                f"{self.source} holds values that 16-bit floats of this kind cannot hold",
                "choose bf16 or q8_0",
            )
        return gguf.quants.quantize(np.ascontiguousarray(values), self.kind)


@dataclass(frozen=True)
class Plan:
    """A file before it is written. `fields`: its metadata; `extra`: tensors that no weight of the base becomes."""

    architecture: str
    quant: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorPlan]
    extra: Mapping[str, np.ndarray]
    tokenizer: Any
    words: gguf_tokenizer.Vocabulary
    ends: gguf_tokenizer.Ends
    template: Template
    positions: int

    @property
    def is_cut(self) -> bool:
        """The file allows fewer positions than the model, because llama.cpp knows no sliding window for it."""
        return bool(self.fields["{arch}.context_length"] < self.positions)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values()) + (8 << 20)

    @property
    def end_ids(self) -> list[int]:
        """The end tokens the file can name: one ends an answer, two more may end a turn or a message."""
        eos = [] if self.ends.eos is None else [self.ends.eos]
        return [*eos, *self.ends.others[:2]]


def quant_named(name: str) -> str:
    """One of `KINDS`.

    Raises:
        EngineError: there is no such type.
    """
    found = ALIASES.get(name, name)
    if found not in KINDS:
        raise EngineError(
            "export.option",
            f"a GGUF file cannot be stored as {name!r} here",
            f"choose from {', '.join(KINDS)}",
        )
    return found


def plan_file(
    base: Path, name: str, tokenizer: Any, template: Template, end_ids: list[int], quant: str, *, rows: int | None = None
) -> Plan:  # fmt: skip
    """Everything about the file but its weights, checked by writing a header and reading it back. `rows` of the embeddings,
    where they are other than the base's.

    Raises:
        EngineError: a family, a setting or a tokenizer that a GGUF file cannot say.
    """
    stored = spec.read_config(base)
    family = str(stored.get("model_type"))
    if family not in FAMILIES:
        raise EngineError(
            "export.gguf_family",
            f"a model of the type {family!r} is not written as GGUF here",
            f"export it as a merged model; GGUF knows {', '.join(sorted(FAMILIES))}",
        )
    with quiet():
        config = AutoConfig.from_pretrained(str(base), local_files_only=True).to_dict()
    config["vocab_size"] = rows or config["vocab_size"]
    architecture = FAMILIES[family]
    tensors = _plan_tensors(base, architecture, config, quant)
    size = next(t.shape[0] for t in tensors.values() if t.name == "token_embd.weight")
    plan = Plan(
        architecture=architecture,
        quant=quant,
        fields=gguf_fields.fields_of(architecture, config, name, KINDS[quant][1]),
        tensors=tensors,
        extra=gguf_fields.rope_tensor(config),
        tokenizer=tokenizer,
        words=gguf_tokenizer.vocabulary_of(tokenizer, size),
        ends=gguf_tokenizer.ends_of(tokenizer, template, end_ids),
        template=template,
        positions=config["max_position_embeddings"],
    )
    _require_readable(plan, config)
    return plan


def header_of(plan: Plan) -> bytes:
    """The file up to its first value: metadata, tokenizer, chat template, and where each tensor lies."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "header.gguf"
        writer = _open_writer(plan, file)
        try:
            for extra, values in plan.extra.items():
                writer.add_tensor_info(extra, values.shape, values.dtype, values.nbytes)
            for tensor in plan.tensors.values():
                _announce(writer, tensor)
            writer.write_header_to_file(file)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        return _padded(file.read_bytes())


def pieces_of(plan: Plan, rows_of: Callable[[str], Rows]) -> Iterator[Piece]:
    """The whole file, piece by piece. `rows_of` gives the rows of a base's tensor as they go into the file.

    Making a piece raises EngineError: a value that the chosen type cannot hold.
    """
    yield of_bytes(header_of(plan))
    for values in plan.extra.values():
        yield of_bytes(_padded(values.tobytes()))
    for tensor in plan.tensors.values():
        rows = rows_of(tensor.source)
        spans = row_spans(tensor.shape, math.lcm(tensor.rows_per_head, whole_blocks(tensor.shape)))
        for start, stop in spans:
            yield Piece(
                tensor.nbytes // tensor.shape[0] * (stop - start), partial(tensor.made, rows, start, stop)
            )
        yield Piece(*_end(tensor.nbytes), ends=True)


def _end(nbytes: int) -> tuple[int, Callable[[], memoryview]]:
    padding = of_bytes(bytes(-nbytes % gguf.GGUF_DEFAULT_ALIGNMENT))
    return padding.nbytes, padding.make


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % gguf.GGUF_DEFAULT_ALIGNMENT)


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring dimensions of a head, transformers its two halves."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def stored_kind(gguf_name: str, shape: tuple[int, ...], quant: str) -> Quant:
    """Vectors stay in fp32; rows that are not whole blocks of 32 in 16 bit; embeddings and head never below 8 bit."""
    kind = KINDS[quant][0]
    if len(shape) == 1:
        return Quant.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        return Quant.F16
    is_edge = gguf_name.removesuffix(".weight") in EDGES
    return Quant.Q8_0 if is_edge and quant.startswith(("q4", "q5")) else kind


def _plan_tensors(
    base: Path, architecture: str, config: Mapping[str, Any], quant: str
) -> dict[str, TensorPlan]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    plans = {}
    for source, header in spec.headers_of_folder(base).items():
        stem, _, suffix = source.rpartition(".")
        found = names.get_name(stem)
        if found is None or suffix not in ("weight", "bias"):
            raise EngineError(
                "export.gguf_family", f"a GGUF file has no name for {source}", "export it as a merged model"
            )
        if found == "output" and config["tie_word_embeddings"]:
            continue
        size = config["vocab_size"] if found in EDGES else header.shape[0]
        name, shape = f"{found}.{suffix}", (size, *header.shape[1:])
        plans[source] = TensorPlan(
            source, name, shape, stored_kind(name, shape, quant),
            heads=heads.get(stem.rpartition(".")[2]) if architecture == "llama" else None,
            shift=1.0 if architecture.startswith("gemma") and found.endswith("norm") else 0.0,
        )  # fmt: skip
    return plans


def _open_writer(plan: Plan, out: Path) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(out, plan.architecture)
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in plan.fields.items():
        adders[type(value)](key.replace("{arch}", plan.architecture), value)
    gguf_tokenizer.write(writer, plan.tokenizer, plan.words, plan.ends, plan.template)
    return writer


def _announce(writer: gguf.GGUFWriter, tensor: TensorPlan) -> None:
    block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    if tensor.kind in (Quant.F32, Quant.F16):
        kind = np.dtype(np.float32 if tensor.kind is Quant.F32 else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, kind, tensor.nbytes)
        return
    packed = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
    writer.add_tensor_info(tensor.name, packed, np.dtype(np.uint8), tensor.nbytes, raw_dtype=tensor.kind)


def _require_readable(plan: Plan, config: Mapping[str, Any]) -> None:
    """Write the header, read it back, and refuse what does not come back.

    Raises:
        EngineError: with the setting or the text.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "header.gguf"
        writer = _open_writer(plan, file)
        for extra, values in plan.extra.items():
            writer.add_tensor(extra, values)
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with quiet():
            found = AutoConfig.from_pretrained(folder, gguf_file=file.name)
        header = gguf_header.read_header(file)
        gguf_import.scale_positions(found, gguf_rope.scaling_of(header, gguf_import.rope_freqs(header, file)))
        require_same_settings(plan.architecture, config, found.to_dict())
        again = gguf_tokenizer.read(file, plan.words.pre)
    for text in (*TEXTS, *map(str, plan.tokenizer.all_special_tokens)):
        if again(text)["input_ids"] != plan.tokenizer(text)["input_ids"]:
            raise EngineError(
                "export.gguf_tokenizer",
                f"this model's tokenizer does not survive a GGUF file: {text!r} becomes other tokens",
                "export it as a merged model",
            )
