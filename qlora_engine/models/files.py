"""The files of a model folder: config.json, the headers of its safetensors files, template, licence. Torch-free.

No weight is read, and no pickle is opened.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError

HEADER_LIMIT_BYTES = 100_000_000
INDEX_FILE = "model.safetensors.index.json"
ORIGIN_FILE = "origin.json"
"""What a folder was converted from, beside the weights that the program wrote."""
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Packed:
    """What a quantized weight is read from. `kind`: fp8 (weight, scale), mxfp4 (blocks, scales) or bitsandbytes (weight and
    constants); `block`: rows and columns that share a scale; `state`: what bitsandbytes wrote of it."""

    kind: str
    parts: Mapping[str, StoredTensor]
    block: tuple[int, int] = (0, 0)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: where it lies and what it is. `dtype` as safetensors writes it (BF16); `start` is
    the first byte of its values in the file, None where only the header is at hand, or where it is `packed`."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int | None = None
    packed: Packed | None = None


def read_config(path: Path) -> Mapping[str, Any]:
    """The parsed `config.json` of a folder.

    Raises:
        EngineError: no folder, no file, or not JSON.
    """
    if not path.exists():
        raise EngineError(
            "model.missing", f"there is no folder {path}", "check the path, or choose another model"
        )
    if not path.is_dir():
        raise EngineError(
            "model.not_folder", f"{path} is not a folder", "choose the folder that holds config.json"
        )
    file = path / "config.json"
    if not file.is_file() and (path / "adapter_config.json").is_file():
        raise EngineError(
            "model.adapter", f"the folder {path} holds an adapter, not a model",
            "choose the model that it was trained on",
        )  # fmt: skip
    if not file.is_file():
        raise EngineError(
            "model.no_config", f"the folder {path} has no config.json, so it is not a transformers model",
            "choose the folder that holds config.json and the safetensors files",
        )  # fmt: skip
    try:
        config = parsing.from_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise EngineError(
            "model.config", f"{file} cannot be read: {error}", "download the model again"
        ) from error
    if not isinstance(config, dict):
        raise EngineError("model.config", f"{file} is not a JSON object", "download the model again")
    return config


def stored_headers(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of all safetensors files of a model folder, as they are stored (`packing.headers_of_folder`: as they
    are meant).

    Raises:
        EngineError: none, only pickles, a missing shard, or a truncated file.
    """
    files = weight_files(path)
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, shards in order.

    Raises:
        EngineError: none, only pickles, or a missing shard.
    """
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    index = path / INDEX_FILE
    if index.is_file():
        return _shards(path, index)
    pickles = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
    if pickles:
        raise EngineError(
            "model.pickle", f"the weights in {path} are pickles ({pickles[0]}), which can run code when read; only safetensors are",
            "get the model's safetensors version, or convert it on a machine you trust",
        )  # fmt: skip
    raise EngineError(
        "model.no_weights",
        f"the folder {path} has no model.safetensors",
        "download the model again, with its weights",
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The header of one safetensors file, checked against the file's size.

    Raises:
        EngineError: truncated, or not a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _truncated(file, size, 8)
        length = struct.unpack("<Q", prefix)[0]
        if length > HEADER_LIMIT_BYTES:
            raise EngineError("model.damaged", f"{file.name} is not a safetensors file", "download it again")
        raw = stream.read(length)
    if len(raw) < length:
        raise _truncated(file, size, 8 + length)
    try:
        header = parsing.from_json(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = {name: _stored(file.name, entry, 8 + length) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise EngineError(
            "model.damaged", f"the header of {file.name} is damaged", "download it again"
        ) from error
    if size < 8 + length + end:
        raise _truncated(file, size, 8 + length + end)
    return found


def read_chat_template(path: Path) -> str | None:
    """The model's own chat template, from `chat_template.jinja` or `tokenizer_config.json`."""
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    try:
        stored = parsing.from_json((path / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "chat_template"
        )
    except (OSError, ValueError, AttributeError):
        return None
    return stored if isinstance(stored, str) else None


def _shards(path: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(parsing.from_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("a shard outside the folder")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise EngineError("model.damaged", f"{index.name} is damaged", "download the model again") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise EngineError(
            "model.missing_shard", f"{len(missing)} of {len(names)} weight files are missing, {missing[0]} among them",
            "download the model again; what is there is kept",
        )  # fmt: skip
    return [path / name for name in names]


def _stored(file: str, entry: Mapping[str, Any], values_at: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(not isinstance(number, int) or number < 0 for number in (*shape, start, end)) or end < start:
        raise ValueError("impossible shape or place")
    size = DTYPE_BYTES.get(entry["dtype"])
    if size is not None and end - start != size * math.prod(shape):
        raise ValueError("shape and bytes disagree")
    return StoredTensor(file, str(entry["dtype"]), shape, end - start, values_at + start)


def _truncated(file: Path, size: int, expected: int) -> EngineError:
    return EngineError(
        "model.truncated",
        f"{file.name} is cut short: {size} bytes, and its header needs at least {expected}",
        "download that file again",
    )


def read_licence(path: Path) -> str | None:
    """From `ORIGIN_FILE` (our conversions) or the model card's front matter."""
    try:
        return str(parsing.from_json((path / ORIGIN_FILE).read_text(encoding="utf-8"))["licence"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    card = path / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.split(":", 1)[1].strip() or None
    return None
